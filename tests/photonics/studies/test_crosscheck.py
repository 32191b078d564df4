"""Published numbers come out within the rounding that they were published with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lumoe.errors import UserError
from lumoe.photonics.studies.crosscheck import crosscheck
from lumoe.resources import data_path

FILES = {
    "published": data_path("published.csv"),
    "eyeriss": data_path("eyeriss_layers.csv"),
    "platforms": data_path("baselines.csv"),
    "albireo": data_path("albireo.yaml"),
}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return crosscheck(**FILES)


def rows(table: pd.DataFrame, check: str) -> pd.DataFrame:
    found = table[table["check"] == check]
    assert len(found)
    return found


def test_networks_have_the_published_counts(table: pd.DataFrame) -> None:
    assert (rows(table, "network")["difference"].abs() < 0.025).all()


def test_eyeriss_layers_are_the_traced_ones(table: pd.DataFrame) -> None:
    layers = rows(table, "eyeriss-layer")
    assert len(layers) == 18
    # published with two decimals of a giga
    assert ((layers["here"] - layers["published"]).abs() <= 0.0051e9).all()


def test_eyeriss_layers_add_up_to_its_totals(table: pd.DataFrame) -> None:
    totals = rows(table, "eyeriss-total").set_index(["item", "quantity"])["difference"]
    assert len(totals) == 6
    assert (totals.abs() < 0.005).all()


def test_rings_are_the_papers(table: pd.DataFrame) -> None:
    assert (rows(table, "pcnna")["difference"].abs() < 1e-4).all()


def test_the_device_sets_rebuild_albireo(table: pd.DataFrame) -> None:
    albireo = rows(table, "albireo")
    power = albireo[albireo["unit"] == "W"]
    # published with two decimals of a watt; the aggressive lasers are the one exception, see the table
    odd = (power["item"] == "aggressive") & (power["quantity"] == "laser")
    assert ((power["here"] - power["published"]).abs()[~odd] <= 0.03).all()
    area = albireo[(albireo["unit"] == "mm2") & (albireo["quantity"] != "dacs_area")]
    assert (area["difference"].abs() < 0.002).all()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "published",
            "check,item,quantity,unit,published,source,confidence\nnetwork,alexnet,colour,1,2,x,read\n",
            "colour",
        ),
        ("published", "check,item,quantity,unit,published,source,confidence\nmoon,a,b,1,2,x,read\n", "moon"),
        ("published", "check\nnetwork\n", "item"),
        ("albireo", "groups: 9\n", "units"),
    ],
)
def test_what_nothing_computes_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / "wrong"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        crosscheck(**{**FILES, name: path})
