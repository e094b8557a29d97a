"""Licence traps: what looks permissive and is not, and the reverse."""

from email.message import Message

import pytest

from codenas_hf.data.licences import (
    PERMISSIVE,
    UNKNOWN,
    is_allowed,
    licence_of_text,
    normalise_licence,
    package_licence,
    project_licence,
    refused_in_header,
)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("Apache Software License", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", True),
        ("(MIT AND GPL-3.0-only) OR MPL-2.0", False),
        ("LGPL-2.1-or-later", False),
        ("MIT AND (Apache-2.0", False),
        ("unknown", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_expression(expression, allowed):
    assert is_allowed(expression, PERMISSIVE) is allowed


def metadata(**fields):
    message = Message()
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            message[name.replace("_", "-")] = value
    return message


GPL_CLASSIFIER = "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
MIT_CLASSIFIER = "License :: OSI Approved :: MIT License"


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"License_Expression": "BSD-3-Clause"}, True),
        ({"Classifier": MIT_CLASSIFIER}, True),
        ({"Classifier": [MIT_CLASSIFIER, GPL_CLASSIFIER]}, False),
        ({"License": "MIT", "Classifier": GPL_CLASSIFIER}, False),
        ({"License": "GPLv3", "Classifier": MIT_CLASSIFIER}, False),
        ({"License": "BSD/Apache-2.0"}, True),
        ({"License": "MIT/GPL-2.0"}, False),
        ({"License": "see LICENSE"}, False),
        ({"License": "BSD-2"}, True),
        ({"Classifier": "License :: OSI Approved"}, False),
        ({}, False),
        ({"License_Expression": "GPL-3.0-only", "Classifier": MIT_CLASSIFIER}, False),
    ],
)
def test_package_metadata(fields, allowed):
    assert is_allowed(package_licence(metadata(**fields)), PERMISSIVE) is allowed


def test_whole_text_in_the_licence_field_is_recognised():
    text = "Copyright X\n\n" + "Permission is hereby granted, free of charge, to any person\n" * 3
    assert package_licence(metadata(License=text.replace("\n", "\n  "))) == "MIT"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3", "LGPL"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE", "AGPL"),
        ("GNU GENERAL PUBLIC LICENSE", "GPL"),
        ("Mozilla Public License Version 2.0", "MPL-2.0"),
        ("Apache License\nVersion 2.0, January 2004\nLicensed under the Apache License, Version 2.0", "Apache-2.0"),
        ("Redistribution and use in source and\nbinary forms ... Neither the name of X", "BSD-3-Clause"),
        ("Redistribution and use in source and binary forms", "BSD-2-Clause"),
        ("Permission to use, copy, modify, and/or distribute this software", "ISC"),
        ("Mozilla Public License Version 2.0 ... means either the GNU General Public License, Version 2.0", "MPL-2.0"),
        ("EUROPEAN UNION PUBLIC LICENCE v. 1.2 ... Compatible: GNU General Public License", "EUPL"),
        ("COMMON DEVELOPMENT AND DISTRIBUTION LICENSE Version 1.0", "CDDL"),
        ("Eclipse Public License - v 2.0", "EPL"),
        ("Server Side Public License\nVERSION 1", "SSPL"),
        ("Business Source License 1.1", "BUSL"),
        ("Attribution-NonCommercial 4.0 International", "CC-BY-NC"),
        ("Creative Commons Legal Code\nAttribution-ShareAlike 3.0 Unported", "CC-BY-SA"),
        ("Permission is hereby granted, free of charge " + "x " * 600 + "Eclipse Public License", "MIT"),
        ("All rights reserved.", UNKNOWN),
    ],
)
def test_licence_of_text(text, licence):
    assert licence_of_text(text) == licence


EXHIBIT_A = """\
# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
"""


@pytest.mark.parametrize(
    ("header", "refused"),
    [
        ("# SPDX-License-Identifier: GPL-3.0-or-later\n", "GPL-3.0-or-later"),
        ("# SPDX-License-Identifier: MIT\n", None),
        ("# SPDX-License-Identifier: MIT OR GPL-2.0-only\n", None),
        ("# under the terms of the GNU\n# General Public License\n", "GPL"),
        ("# under the terms of the GNU Lesser\n#\n#  General Public\n# License\n", "LGPL"),
        (EXHIBIT_A, "MPL"),
        ('"""A module.\n\n' + EXHIBIT_A.replace("# ", "    ") + '"""\n', "MPL"),
        ("# License: GPLv3\n", "GPL"),
        ("# License: GNU LGPL v2.1\n", "LGPL"),
        ('__license__ = "GPL-3.0"\n', "GPL"),
        ("# Released under the AGPL\n", "AGPL"),
        ("# Distributed under the terms of the GNU\n# Affero GPL, version 3.\n", "AGPL"),
        ("# Licensed under GPLv2+\n", "GPL"),
        ("# This code is proprietary and\n# confidential.\n", "Proprietary"),
        ("# Copyright 2020. All rights reserved.\n", None),
        ("# The licence is compatible with the GPL, unlike that of the AGPL.\n", None),
        ("# Licensed under a GPL-compatible licence.\n# License: GPL-compatible, see LICENSE\n", None),
        ("# License: MIT (GPL compatible)\n", None),
        ("# Originally released under LGPL, graciously donated.\n", None),
        ('PARSER = "reads GPL and MPL headers"\n', None),
    ],
)
def test_header(header, refused):
    assert refused_in_header(header + "x = 1\n", PERMISSIVE) == refused


@pytest.mark.parametrize(
    ("own", "header", "declared"),
    [
        ("GPL-3.0-only", "# the GNU General Public License\n", "GPL"),
        ("LGPL-2.1-or-later", "# License: LGPL\n", "LGPL"),
        ("AGPL-3.0-only", "# Released under the AGPL\n", "AGPL"),
        ("MPL-2.0", EXHIBIT_A, "MPL-2.0"),
        ("LicenseRef-Proprietary", "# proprietary and confidential\n", "Proprietary"),
    ],
)
def test_a_licence_without_version_is_met_by_an_allowed_one_of_its_family(own, header, declared):
    allowed = ("MIT", own)
    assert refused_in_header(header, ("MIT",)) is not None
    assert refused_in_header(header, allowed) is None
    assert is_allowed(f"MIT AND {declared}", allowed)
    assert not is_allowed(declared, ("MIT",))
    others = {"GPL-3.0-only", "LGPL-2.1-or-later", "AGPL-3.0-only", "LicenseRef-Proprietary"} - {own}
    assert not is_allowed(declared, tuple(others))
    assert refused_in_header(header, tuple(others)) is not None


def test_project_folder(tmp_path):
    assert project_licence(tmp_path) == UNKNOWN
    (tmp_path / "LICENSE").write_text("GNU GENERAL PUBLIC LICENSE")
    assert project_licence(tmp_path) == "GPL"
    (tmp_path / "pyproject.toml").write_text('[project]\nlicense = {text = "MIT"}\n')
    assert project_licence(tmp_path) == "MIT"
    (tmp_path / "pyproject.toml").write_text("not toml [")
    assert project_licence(tmp_path) == "GPL"


@pytest.mark.parametrize("name", ["License.txt", "License", "Copying", "licence.md", "LICENSE"])
def test_a_licence_file_is_found_in_whatever_case(tmp_path, name):
    (tmp_path / "licences.py").write_text("NAMES = 'Mozilla Public License'\n")
    assert project_licence(tmp_path) == UNKNOWN
    (tmp_path / name).write_text("GNU GENERAL PUBLIC LICENSE")
    assert project_licence(tmp_path) == "GPL"


@pytest.mark.parametrize(
    ("declared", "licence"),
    [
        ("CC-BY-SA-4.0", "CC-BY-SA-4.0"),
        ("OSL-3.0", "OSL-3.0"),
        ("Artistic-2.0", "Artistic-2.0"),
        ("Elastic-2.0", "Elastic-2.0"),
        ("PolyForm-Noncommercial-1.0.0", "PolyForm-Noncommercial-1.0.0"),
        ("mit", "MIT"),
        ("see-the-LICENSE", UNKNOWN),
        ("LICENSE", UNKNOWN),
    ],
)
def test_what_a_project_declares_is_taken_at_its_word(tmp_path, declared, licence):
    for text in (f"[project]\nlicense = '{declared}'\n", f"[tool.poetry]\nlicense = '{declared}'\n"):
        (tmp_path / "pyproject.toml").write_text(text)
        assert project_licence(tmp_path) == licence


def test_names_are_normalised():
    assert normalise_licence("Apache License, Version 2.0") == "Apache-2.0"
    assert normalise_licence("") == UNKNOWN
