"""The licences that the Hub knows: it shows and filters by these identifiers, and by no others.

From its documentation, https://huggingface.co/docs/hub/repositories-licenses; for whatever it lacks there is `other`.
"""

from __future__ import annotations

import difflib

HUB_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    open-mdw openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()
)


def check_licence(licence: str) -> None:
    """Refuses what is no licence of the Hub.

    Raises:
        ValueError: names the one that is spelled most like it.
    """
    if licence in HUB_LICENCES:
        return
    close = difflib.get_close_matches(licence.lower().replace(" ", "-"), sorted(HUB_LICENCES), n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`? For" if close else "for"
    raise ValueError(
        f"`license` must be an identifier that the Hub knows, such as mit or apache-2.0, got {licence!r}; {hint} any "
        "other licence give `other`, and put its text beside the model as LICENSE"
    )
