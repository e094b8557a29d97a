"""Licences: which are permissive, and what a package, a project folder or a file header says about itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from email.message import Message
from pathlib import Path

UNKNOWN = "unknown"

PERMISSIVE = (
    "0BSD", "Apache-2.0", "BlueOak-1.0.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python",
    "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "NCSA", "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "WTFPL",
    "Zlib", "ZPL-2.1",
)  # fmt: skip

# What people write in `License:` and in classifiers, lower case without punctuation, to the SPDX identifier.
_NAMES = {
    "mit": "MIT", "mit license": "MIT", "the mit license": "MIT", "expat": "MIT", "mit no attribution": "MIT-0",
    "apache 2 0": "Apache-2.0", "apache 2": "Apache-2.0", "apache license 2 0": "Apache-2.0",
    "apache license version 2 0": "Apache-2.0", "apache software license 2 0": "Apache-2.0",
    "apache software license": "Apache-2.0", "asl 2 0": "Apache-2.0", "apache v2": "Apache-2.0",
    "apache": "Apache-2.0", "apache license": "Apache-2.0", "apache 2 0 license": "Apache-2.0",
    "bsd": "BSD-3-Clause", "bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "new bsd license": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause", "modified bsd license": "BSD-3-Clause", "3 clause bsd": "BSD-3-Clause",
    "bsd 3 clause license": "BSD-3-Clause", "3 clause bsd license": "BSD-3-Clause", "bsd 3": "BSD-3-Clause",
    "bsd 2 clause license": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause", "simplified bsd license": "BSD-2-Clause",
    "bsd 2": "BSD-2-Clause",
    "isc license": "ISC", "isc license iscl": "ISC", "iscl": "ISC", "psf": "PSF-2.0", "psf license": "PSF-2.0",
    "python software foundation license": "PSF-2.0", "psfl": "PSF-2.0", "zlib libpng license": "Zlib",
    "the unlicense unlicense": "Unlicense", "the unlicense": "Unlicense", "public domain": "Unlicense",
    "historical permission notice and disclaimer hpnd": "HPND", "zope public license": "ZPL-2.1",
    "boost software license 1 0 bsl 1 0": "BSL-1.0", "university of illinois ncsa open source license": "NCSA",
    "cc0 1 0 universal cc0 1 0 public domain dedication": "CC0-1.0", "mit no attribution license mit 0": "MIT-0",
}  # fmt: skip
_SPDX = {name.lower(): name for name in PERMISSIVE}
_COPYLEFT = re.compile(
    r"(?i)\b(?:[AL]?GPL|GNU|MPL|Mozilla|EUPL|CDDL|EPL|SSPL|BUSL|OSL|proprietary|PolyForm|LicenseRef-"
    r"|Commons[- ]Clause|Elastic[- ](?:Licen[cs]e|\d)|CC[- ]BY[- ](?:NC|SA|ND))"
)
_VERSIONED = re.compile(r"(?=.*\d)[A-Za-z][\w.+]*(?:-[\w.+]+)+")  # one word like `OSL-3.0`: an identifier of SPDX
# How a text names the licences that are not permissive, how far from its beginning, and what they are called here:
# the first that it names is its own, others are those that it compares itself with.
_TITLES = (
    (re.compile(r"(?i)GNU (?:Lesser|Library) General Public Licen[cs]e"), 20_000, "LGPL"),
    (re.compile(r"(?i)GNU Affero General Public Licen[cs]e"), 20_000, "AGPL"),
    (re.compile(r"(?i)GNU General Public Licen[cs]e"), 20_000, "GPL"),
    (re.compile(r"(?i)Mozilla Public Licen[cs]e"), 20_000, "MPL-2.0"),
    (re.compile(r"(?i)European Union Public Licen[cs]e"), 1000, "EUPL"),
    (re.compile(r"(?i)Common Development and Distribution Licen[cs]e"), 1000, "CDDL"),
    (re.compile(r"(?i)Eclipse Public Licen[cs]e"), 1000, "EPL"),
    (re.compile(r"(?i)Server Side Public Licen[cs]e"), 1000, "SSPL"),
    (re.compile(r"(?i)Business Source Licen[cs]e"), 1000, "BUSL"),
    (re.compile(r"(?i)Commons Clause"), 1000, "Commons-Clause"),
    (re.compile(r"(?i)Attribution[- ]Non-?Commercial"), 1000, "CC-BY-NC"),
    (re.compile(r"(?i)Attribution[- ]Share-?Alike"), 1000, "CC-BY-SA"),
)
_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n\"'*]+)")
_PROSE = (
    *((title, name.removesuffix("-2.0")) for title, _, name in _TITLES[:4]),
    (re.compile(r"(?i)proprietary and confidential"), "Proprietary"),
    (re.compile(r"(?i)Commons Clause"), "Commons-Clause"),
    (re.compile(r"(?i)Business Source Licen[cs]e"), "BUSL"),
)
_SHORT = (
    r"(?:the )?(?:terms (?:and conditions )?of (?:the )?)?"
    r"(?:GNU )?((?:Lesser |Affero |[AL])?GPL|MPL)(?:-?v?\d[\d.]*)?\b(?![- ]compatible)"
)
_ABBREVIATED = re.compile(r"(?:[Gg]|\b[Mm])[Pp][Ll]")  # without it the next two need not be tried
# A licence that is given, not one that is only spoken of, as in `compatible with the GPL`.
_GIVEN = re.compile(
    r"(?i)\b(?<!originally )(?<!formerly )(?:"
    r"(?:released|licen[cs]ed|distributed|published|available|covered)(?: only)? (?:under|by)"
    rf"|under the terms (?:and conditions )?of|subject to) {_SHORT}"
)
_DECLARED = re.compile(rf"(?im)^[ \t#*]*(?:licen[cs]e|__licen[cs]e__)[ \t]*[:=][ \t]*[\"']?{_SHORT}")
# Names that stand for every version of a licence: a text that carries one does not say which.
_FAMILIES = {name for _, _, name in _TITLES} | {name for _, name in _PROSE}


def normalise_licence(text: str) -> str:
    """The SPDX identifier of a free-form licence name; the name itself when it is not one of the permissive ones."""
    text = text.strip()
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    return _SPDX.get(text.lower()) or _NAMES.get(plain) or _SPDX.get(plain.replace(" ", "-")) or text or UNKNOWN


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be met with `allowed` licences only: one side of OR, both sides of AND.

    An exception (`WITH`) only adds permissions, so its base decides. A word that is not understood is not allowed.
    `GPL` alone, as a licence text or a header is understood, is met by any `GPL-...` that is allowed.
    """
    words = re.findall(r"\(|\)|[^\s()]+", expression)
    position = 0

    def either() -> bool:
        nonlocal position
        value = both()
        while position < len(words) and words[position].upper() == "OR":
            position += 1
            right = both()
            value = value or right
        return value

    def both() -> bool:
        nonlocal position
        value = single()
        while position < len(words) and words[position].upper() in ("AND", ","):
            position += 1
            right = single()
            value = value and right
        return value

    def single() -> bool:
        nonlocal position
        if position >= len(words):
            return False
        word = words[position]
        position += 1
        if word == "(":
            value = either()
            closed = position < len(words) and words[position] == ")"
            position += 1
            return value and closed
        if position < len(words) and words[position].upper() == "WITH":
            position += 2
        name = normalise_licence(word)
        return name in allowed or (name in _FAMILIES and _has_member(name, allowed))

    if normalise_licence(expression) in allowed:
        return True
    result = either()
    return result and position == len(words)


def _has_member(family: str, allowed: Collection[str]) -> bool:
    """Whether an allowed licence is of a family: `GPL-3.0-only` is of `GPL`, `LicenseRef-Proprietary` of that."""
    return any(name.removeprefix("LicenseRef-").lower().startswith(family.lower()) for name in allowed)


def package_licence(metadata: Message) -> str:
    """The licence that a distribution's metadata declares: `License-Expression`, else classifiers, else `License`.

    A classifier of the GPL family beside a permissive one stays in the answer (joined by AND), so that a
    contradiction is never read as permission. Texts too long to be a name give `unknown`.
    """
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression).strip()
    found: list[str] = []
    for classifier in metadata.get_all("Classifier") or []:
        parts = [part.strip() for part in str(classifier).split("::")]
        if parts[0] == "License" and parts[-1] not in ("License", "OSI Approved"):
            found.append(normalise_licence(parts[-1]))
    declared = str(metadata.get("License") or "").strip()
    if declared and len(declared) < 100 and "\n" not in declared:
        if not found or _COPYLEFT.search(declared):
            found.append(_name_or_expression(declared))
    elif declared and not found:
        found.append(licence_of_text(declared))
    unique = list(dict.fromkeys(found))
    return " AND ".join(unique) if unique else UNKNOWN


def _name_or_expression(text: str) -> str:
    """`MIT License` and `OSL-3.0` are names, `MIT OR Apache-2.0` an expression, `BSD, see LICENSE` neither."""
    name = normalise_licence(text)
    if name in PERMISSIVE or re.search(r"\b(?:AND|OR|WITH)\b", text) or _COPYLEFT.search(text):
        return name
    if _VERSIONED.fullmatch(name):
        return name
    for separator in ("/", ",", ";", " and ", " or "):
        if separator in text:
            parts = [normalise_licence(part) for part in text.split(separator)]
            if all(part in PERMISSIVE for part in parts):
                return " AND ".join(parts)
    return UNKNOWN


def licence_of_text(text: str) -> str:
    """The SPDX identifier of a whole licence text, or its family (`GPL`), by what only it says; else `unknown`."""
    flat = re.sub(r"\s+", " ", text[:20_000])
    found = [(match.start(), name) for title, reach, name in _TITLES if (match := title.search(flat, 0, reach))]
    if found:
        return min(found)[1]
    if re.search(r"(?i)Apache License,? Version 2\.0", flat):
        return "Apache-2.0"
    if "Permission is hereby granted, free of charge" in flat:
        return "MIT"
    if "Redistribution and use in source and binary forms" in flat:
        return "BSD-3-Clause" if re.search(r"(?i)neither the names? of", flat) else "BSD-2-Clause"
    if re.search(r"(?i)Permission to use, copy, modify, and(?:/or)? distribute this software", flat):
        return "ISC"
    if "PYTHON SOFTWARE FOUNDATION LICENSE" in flat:
        return "PSF-2.0"
    if "free and unencumbered software released into the public domain" in flat:
        return "Unlicense"
    return UNKNOWN


def project_licence(folder: Path) -> str:
    """What a project folder says: `pyproject.toml`'s licence, else its LICENSE or COPYING file, else `unknown`."""
    pyproject = folder / "pyproject.toml"
    if pyproject.is_file():
        try:
            value = tomllib.loads(_beginning(pyproject, 1_000_000))
            declared = value.get("project", {}).get("license")
            if declared is None:
                declared = value.get("tool", {}).get("poetry", {}).get("license")
        except (tomllib.TOMLDecodeError, AttributeError):
            declared = None
        if isinstance(declared, dict):
            declared = declared.get("text")
        if isinstance(declared, str) and len(declared) < 100:
            name = _name_or_expression(declared)
            if name != UNKNOWN:
                return name
    names = sorted(path.name for path in folder.glob("*"))
    for pattern in ("licen[cs]e", "copying"):  # in whatever case: `License.txt`
        for name in names:
            if re.match(pattern, name.lower()) and not name.endswith(".py") and (folder / name).is_file():
                return licence_of_text(_beginning(folder / name, 20_000))
    return UNKNOWN


def _beginning(path: Path, limit: int) -> str:
    """The first bytes of a text; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    except OSError:
        return ""


def refused_in_header(text: str, allowed: Collection[str]) -> str | None:
    """The licence outside `allowed` that the first 4 kB of a file name, whatever its package's metadata say.

    Of a header in prose the answer is the licence's family, such as `GPL`. None where nothing is refused.
    """
    head = text[:4096]
    named = _HEADER.search(head)
    if named:
        expression = named.group(1).strip()
        return None if is_allowed(expression, allowed) else expression[:40]
    flat = re.sub(r"\s+", " ", re.sub(r"\n[ \t]*[#*]*", " ", head))  # a comment breaks its lines anywhere
    found = [name for phrase, name in _PROSE if phrase.search(flat)]
    matches = (_GIVEN.search(flat), _DECLARED.search(head)) if _ABBREVIATED.search(head) else ()
    short = [match.group(1).upper() for match in matches if match]
    found += [f"{name[0]}GPL" if " " in name else name for name in short]  # `Lesser GPL`
    return next((name for name in found if not _has_member(name, allowed)), None)
