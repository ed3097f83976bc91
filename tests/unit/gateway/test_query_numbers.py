"""Numbers in query strings are what the document says: digits, and no other spelling that Python would take."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from llmlb.bus.errors import InvalidRequest
from llmlb.router.gateway.llmlb_models_schema import CatalogQuery
from llmlb.router.gateway.requests import parse_filter
from llmlb.router.gateway.ws import EventsQuery

INTEGERS = [(CatalogQuery, "page"), (CatalogQuery, "limit"), (EventsQuery, "after")]
ODD = ["", " 5", "5 ", "+5", "1_0", "5.0", "5e0", "true", "\u0665", "0x5", "5" * 20, "-1"]


@pytest.mark.parametrize(("query", "name"), INTEGERS)
def test_a_whole_number_is_digits(query: type[BaseModel], name: str) -> None:
    assert getattr(query.model_validate({name: "5"}), name) == 5
    for odd in ODD:
        with pytest.raises(ValidationError):
            query.model_validate({name: odd})


@pytest.mark.parametrize("name", ["min_ms", "max_ms", "since", "until"])
def test_a_number_has_no_blanks_underscores_or_digits_of_other_scripts(name: str) -> None:
    for good in ("5", "5.5", "0.25", "1e3", "1.5E-2"):
        assert getattr(parse_filter({name: [good]}), name) == float(good)
    for odd in ("", " 5", "5 ", "1_0", "\u0665", "nan", "inf", "1e999", "true", "9" * 500, "x"):
        with pytest.raises(InvalidRequest) as caught:
            parse_filter({name: [odd]})
        assert caught.value.param == name
