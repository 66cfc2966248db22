"""What Slurm says of a cluster, as it was captured from Slurm 22.05 and as a site may write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.schedulers.slurm import site

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "slurm" / "site"
NAMES, KINDS = st.sampled_from(["gpu", "nvme", "a_0"]), st.sampled_from(["a100", "h100", "mi250_x"])


def captured(name: str) -> str:
    return (CAPTURES / f"{name}.txt").read_text()


def test_settings_are_read_by_name() -> None:
    found = site.settings(captured("config"))
    assert found["ClusterName"] == "dev"
    assert found["SLURM_VERSION"] == "22.05.8"
    assert found["AccountingStorageType"] == "accounting_storage/slurmdbd"
    assert site.number(found["MinJobAge"]) == 10
    assert site.number("UNLIMITED") is None


def test_partitions_have_their_limits() -> None:
    found = site.partitions(captured("partitions"))
    assert list(found) == ["gpu", "debug", "preempt"]
    assert [name for name, each in found.items() if each.is_default] == ["gpu"]
    assert found["debug"].max_time_s == 300
    assert found["debug"].max_nodes is None
    assert found["debug"].total_nodes == 3
    assert found["debug"].is_up
    assert found["debug"].takes_account("anybody")


def test_a_partition_takes_the_accounts_it_names_and_none_that_it_refuses() -> None:
    line = "PartitionName=a MaxTime=UNLIMITED MaxNodes=4 State=DRAIN {}"
    only = site.partitions(line.format("AllowAccounts=proj1,proj2 AllowQos=long"))["a"]
    assert (only.max_time_s, only.max_nodes, only.is_up) == (None, 4, False)
    assert (only.takes_account("PROJ1"), only.takes_account("proj3")) == (True, False)
    assert (only.takes_qos("long"), only.takes_qos("normal")) == (True, False)
    never = site.partitions(line.format("DenyAccounts=proj1 DenyQos=long"))["a"]
    assert (never.takes_account("proj1"), never.takes_account("proj3")) == (False, True)
    assert (never.takes_qos("long"), never.takes_qos("normal")) == (False, True)


def test_nodes_that_are_alike_are_one_line() -> None:
    found = site.nodes(captured("nodes"))
    assert {each.partition for each in found} == {"gpu", "debug", "preempt"}
    assert all(each.count == 3 and each.gres == {"gpu": 4} and not each.features for each in found)
    line = site.SEPARATOR.join(("p", "2", "a100,ib", "gpu:a100:4(S:0-1),nvme:1"))
    (one,) = site.nodes(line)
    assert one.features == {"a100", "ib"}
    assert one.gres == {"gpu": 4, "gpu:a100": 4, "nvme": 1}


def test_associations_name_accounts_and_limits() -> None:
    found = site.associations(captured("associations"))
    assert [(each.account, each.max_submit) for each in found] == [("proj1", 5), ("root", None)]
    assert all(each.qos == {"normal"} for each in found)


@pytest.mark.parametrize(
    ("constraint", "features"),
    [("a100", ("a100",)), ("a100&ib", ("a100", "ib")), ("a|b", ()), ("[rack1*2]", ()), ("", ())],
)
def test_only_features_that_all_must_be_there_are_looked_for(
    constraint: str, features: tuple[str, ...]
) -> None:
    assert site.wanted_features(constraint) == features


@given(st.dictionaries(st.tuples(NAMES, KINDS), st.integers(1, 99), min_size=1))
def test_resources_are_counted_by_name_and_by_type(wanted: dict[tuple[str, str], int]) -> None:
    text = ",".join(f"{name}:{kind}:{count}(S:0-1)" for (name, kind), count in wanted.items())
    found = site.gres(text)
    for (name, kind), count in wanted.items():
        assert found[f"{name}:{kind}"] == count
        assert found[name] == sum(each for (other, _), each in wanted.items() if other == name)


@given(st.text())
def test_no_text_makes_a_reader_fail(text: str) -> None:
    """Sites print what they like; what is not understood is not there."""
    site.settings(text)
    site.partitions(f"PartitionName=a {text}")
    site.nodes(site.SEPARATOR.join(("p", text, text, text)))
    site.associations(text)
    site.gres(text)
    site.wanted_features(text)
