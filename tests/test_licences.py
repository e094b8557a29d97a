"""Licence traps: what looks permissive and is not, and the reverse."""

from email.message import Message

import pytest

from codenas_hf.data.licences import (
    PERMISSIVE,
    UNKNOWN,
    header_forbids,
    is_allowed,
    licence_of_text,
    normalise_licence,
    package_licence,
    project_licence,
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
        ("All rights reserved.", UNKNOWN),
    ],
)
def test_licence_of_text(text, licence):
    assert licence_of_text(text) == licence


@pytest.mark.parametrize(
    ("header", "forbidden"),
    [
        ("# SPDX-License-Identifier: GPL-3.0-or-later\n", True),
        ("# SPDX-License-Identifier: MIT\n", False),
        ("# SPDX-License-Identifier: MIT OR GPL-2.0-only\n", False),
        ("# under the terms of the GNU\n# General Public License\n", True),
        ("# This code is proprietary and confidential.\n", True),
        ("# Copyright 2020. All rights reserved.\n", False),
    ],
)
def test_header(header, forbidden):
    assert header_forbids(header + "x = 1\n", PERMISSIVE) is forbidden


def test_project_folder(tmp_path):
    assert project_licence(tmp_path) == UNKNOWN
    (tmp_path / "LICENSE").write_text("GNU GENERAL PUBLIC LICENSE")
    assert project_licence(tmp_path) == "GPL"
    (tmp_path / "pyproject.toml").write_text('[project]\nlicense = {text = "MIT"}\n')
    assert project_licence(tmp_path) == "MIT"
    (tmp_path / "pyproject.toml").write_text("not toml [")
    assert project_licence(tmp_path) == "GPL"


def test_names_are_normalised():
    assert normalise_licence("Apache License, Version 2.0") == "Apache-2.0"
    assert normalise_licence("") == UNKNOWN
