"""`${…}` means what it means in OmegaConf, and mistakes in it are explained."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from oellm_autoexp.config.tree import Tree
from oellm_autoexp.core import symbols
from oellm_autoexp.errors import ConfigError

#: The same examples every time, whatever else the machine is doing.
FUZZED = settings(max_examples=100, deadline=None, derandomize=True)

ENVIRONMENT = {"WORK": "/work", "N": "4", "HF_TOKEN": "hf_abc"}


def resolved(raw, **options):
    return Tree(raw, environment=ENVIRONMENT, **options).folded


def value(text, **others):
    return resolved({"x": text, **others})["x"]


CASES = [
    {"a": 1, "x": "${a}"},
    {"a": {"b": [1, {"c": "z"}]}, "x": "${a.b.1.c}", "y": "${a[b][0]}", "z": "${a.b}"},
    {"a": {"b": 1, "x": "${.b}", "c": {"y": "${..b}", "z": "${...q}"}}, "q": 2},
    {"a": [1, "${.0}", ["${..0}"]]},
    {"a": None, "x": "${a}"},
    {"a": 1, "x": "p${a}q${a}", "y": " ${a}", "z": "$${a}$"},
    {"a": 1e-3, "b": 2.0, "x": "${a}-${b}", "y": "${ a }"},
    {"x": r"\${a}", "y": r"\\${z}", "z": "1", "w": r"a\b$c", "v": r"\\\${z}", "u": r"\\\\${z}\\", "t": r"\\"},
    {"x": r"c:\${z}\n", "z": 1, "y": r"${z}\\", "w": r"\n${z}"},
    {
        "a": {"small": 1, "large": 2},
        "k": "large",
        "x": "${a.${k}}",
        "y": "${a[${k}]}",
        "z": "${${w}}",
        "w": "k",
    },
    {"a": {"b": {"c": 5}}, "k": "b.c", "x": "${a.${k}}"},
    {"a": {"b": "${c}"}, "c": {"d": "${e}"}, "e": 3, "x": "${a.b.d}"},
    {"a": {"b": "${.c}", "c": 1}, "d": {"c": 2, "x": "${a}"}},
    {"x": "${oc.env:WORK}", "y": "${oc.env:NOPE,dflt}", "z": "${oc.env:NOPE,null}", "w": "${oc.env:NOPE,10}"},
    {"x": "${oc.env:NOPE,'a b'}/c", "y": '${oc.env:NOPE,"${x}"}'},
    {"x": "${oc.decode:'[1, 2, {a: b}]'}", "y": "${oc.decode:${oc.env:N}}", "z": "${oc.decode:null}"},
    {"x": "${oc.decode:'1e-3'}", "y": "${oc.decode:abc}", "z": "${oc.decode:'${w}'}", "w": 3},
    {"x": "${oc.create:{a: 1, b: [2, x]}}", "y": "${x.b}", "z": "${oc.create:[]}"},
    {"a": {"b": 1}, "x": "${oc.select:a.b}", "y": "${oc.select:a.c}", "z": "${oc.select:a.c,7}"},
    {
        "a": {"b": None, "x": "${oc.select:.b,3}", "y": "${oc.select:.c,3}"},
        "z": "${oc.select:q.r.s,${w}}",
        "w": 9,
    },
    {"a": "???", "x": "${oc.select:a,5}", "y": "${oc.select:a}"},
    {
        "a": {"b": 1, "c": "${.b}"},
        "x": "${oc.dict.keys:a}",
        "y": "${oc.dict.values:a}",
    },
    {"a b": 1, "gpus-per-node": 8, "x": "${gpus-per-node}", "1": 2, "y": "${1}"},
    {"x": "${oc.create:[a\\,b, a b  c, 'a\\'b', \\ x, \"q'q\", '${y}\\\\', '\\\\${y}']}", "y": 1},
    {"x": "${oc.create:[1,1.5,1_000,-3,inf,null,true,x/y-z:w,'1']}"},
    {"x": "${oc.create:{a: ${y}, 1: [${y}, '${y}', p${y}]}}", "y": 3},
    {"a": "${b}", "b": "${c}", "c": [1, "${d}"], "d": {"e": "${f}"}, "f": "v"},
]
BROKEN = [
    {"x": "${a}"},
    {"x": "${x}"},
    {"a": "${b}", "b": "${a}"},
    {"a": {"b": "${a}"}},
    {"a": {"b": "${c}"}, "c": "${a}"},
    {"a": 1, "x": "${a.b}"},
    {"a": None, "x": "${a.b}"},
    {"a": [1], "x": "${a.1}"},
    {"a": [1], "x": "${a.b}"},
    {"x": "${..a}"},
    {"x": "${a"},
    {"x": "${}"},
    {"x": "${a b}"},
    {"x": "a ${ b"},
    {"x": "${oc.nope:1}"},
    {"x": "${oc.env:NOPE}"},
    {"x": "${oc.env:}"},
    {"x": "${oc.decode:'[1,'}"},
    {"a": 1, "x": "${oc.decode:${a}}"},
    {"a": "???", "x": "${a}"},
    {"k": 1, "a": {"1": 2}, "x": "${a.${k}}"},
    {"x": "${oc.select:a.b,${q}}"},
    {"x": "${oc.dict.keys:a}", "a": 1},
]


@pytest.mark.parametrize("raw", CASES, ids=str)
def test_results_are_those_of_omegaconf(raw, monkeypatch):
    """References, escapes, nesting and OmegaConf's own resolvers."""
    for name in ("WORK", "N"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    assert repr(resolved(raw)) == repr(OmegaConf.to_container(OmegaConf.create(raw), resolve=True))


@pytest.mark.parametrize("raw", BROKEN, ids=str)
def test_what_omegaconf_refuses_is_refused(raw):
    """One fault that names the place, not a guess."""
    with pytest.raises(Exception):  # noqa: B017
        OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    with pytest.raises(ConfigError) as caught:
        resolved(raw)
    for fault in caught.value.faults:
        assert fault.key in {"x", "a", "b", "a.b", "c"} and fault.value.strip() in str(raw)


TEXTS = st.sampled_from(["", "t", "a b", "\\", "\\\\", "$", "x-y", "é", "{}", r"\${no}", ":", ","])


@st.composite
def configs(draw):
    """A nested config whose leaves refer to one another, mostly backwards."""
    scalars = ["s"]
    containers = ["c", "c.d", "c.l"]

    def reference(targets, depth):
        path = draw(st.sampled_from(targets))
        form = draw(st.integers(0, 5))
        if form == 0:
            return "." * depth + path
        if form == 1 and "." in path:
            first, rest = path.split(".", 1)
            return f"{first}[{rest}]" if "." not in rest else path
        if form == 2 and "." in path:
            parent, last = path.rsplit(".", 1)
            return f"{parent}.${{names.{last}}}" if last in names else path
        return path

    def leaf(depth):
        kind = draw(st.integers(0, 9))
        if kind < 2:
            return draw(
                st.one_of(st.integers(), st.sampled_from([1e-3, 2.5, 1e20]), st.text("ab \\", max_size=4))
            )
        if kind < 6:
            return f"${{{reference(scalars, depth)}}}"
        pieces = draw(st.lists(st.one_of(TEXTS, st.none()), min_size=1, max_size=4))
        return "".join(f"${{{reference(scalars, depth)}}}" if piece is None else piece for piece in pieces)

    names = {key: key for key in "abdl"}
    config = {"names": names, "s": 7, "c": {"d": {"a": 1, "b": "v"}, "l": [3, "w"]}}
    scalars += ["c.d.a", "c.d.b", "c.l.0", "c.l.1"]
    for number in range(draw(st.integers(1, 6))):
        key = f"k{number}"
        shape = draw(st.integers(0, 3))
        if shape == 0:
            config[key] = leaf(1)
            scalars.append(key)
        elif shape == 1:
            config[key] = {"a": leaf(2), "b": {"d": leaf(3)}}
            scalars += [f"{key}.a", f"{key}.b.d"]
            containers += [key, f"{key}.b"]
        elif shape == 2:
            config[key] = [leaf(2), [leaf(3)]]
            scalars += [f"{key}.0", f"{key}.1.0"]
            containers += [key, f"{key}.1"]
        else:
            config[key] = f"${{{reference(containers, 1)}}}"
            containers.append(key)
    if draw(st.integers(0, 4)) == 0:
        # A forward reference, and with it perhaps a circle.
        config["c"]["d"]["b"] = f"p${{{draw(st.sampled_from(scalars))}}}"
    order = draw(st.permutations(list(config)))
    return {key: config[key] for key in order}


def outcome(function):
    try:
        return function()
    except Exception:  # noqa: BLE001
        return "refused"


@FUZZED
@given(configs())
def test_generated_configs_resolve_as_in_omegaconf(raw):
    """Same values or both refuse, over nested configs with every form of reference."""
    theirs = outcome(lambda: OmegaConf.to_container(OmegaConf.create(raw), resolve=True))
    ours = outcome(lambda: Tree(raw, environment={}).folded)
    assert ours == theirs and repr(ours) == repr(theirs)


@FUZZED
@given(st.text("${}ab.:,'\"\\[] \n1", max_size=25))
def test_any_text_resolves_as_in_omegaconf(text):
    """Whatever the text: the same value, or both refuse."""
    raw = {"a": {"b": "q", "a": 2}, "b": [1, "r"], "x": text}
    theirs = outcome(lambda: OmegaConf.to_container(OmegaConf.create(raw), resolve=True))
    ours = outcome(lambda: Tree(raw, environment={}).folded)
    if ours == "refused" and theirs != "refused":
        # Only texts that a container or null would end up in are refused here and written out there.
        with pytest.raises(ConfigError, match="within a text"):
            Tree(raw, environment={})
    elif "," in str(ours) and ours != theirs:
        # A list within a text is written with commas here, as Python writes it there.
        assert "b}" in text or "b]" in text
    else:
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("${oc.add:1,2,3}", 6),
        ("${add:1,2.5}", 3.5),
        ("${oc.addi:1,2.5}", 3),
        ("${oc.sub:10,1,2}", 7),
        ("${oc.subi:10,0.5}", 9),
        ("${oc.mul:2,3}", 6),
        ("${oc.mul:${oc.env:N},2}", 8),
        ("${oc.muli:0.29,100}", 29),
        ("${oc.mul:${l}}", 6),
        ("${oc.div:1,4}", 0.25),
        ("${oc.divi:7,2}", 3),
        ("${oc.cdivi:7,2}", 4),
        ("${oc.cdivi:0.3,0.1}", 3),
        ("${oc.sqrt:16}", 4.0),
        ("${oc.int:3.9}", 3),
        ("${oc.int:true}", 1),
        ("${oc.mul_round_int:10,1.3,8}", 16),
        ("${oc.min:3,1,2}-${oc.max:${l}}", "1-3"),
        ("${oc.len:${l}}", 3),
        ("${oc.len:abc}", 3),
        ("${oc.slice:${l},1}", [2, 3]),
        ("${oc.slice:${l},0,2}", [1, 2]),
        ("${oc.concat:${l},[4]}", [1, 2, 3, 4]),
        ("${oc.concat:a,1,true}", "a1true"),
        ("${oc.join:',',${l}}", "1,2,3"),
        ("${oc.join:/,a,b}", "a/b"),
        ("${oc.dict_merge:{a: 1, b: 1},null,{b: 2}}", {"a": 1, "b": 2}),
        ("${oc.format_time:90}", "00:01:30"),
        ("${oc.format_time:2880,minutes}", "2-00:00:00"),
        ("${oc.format_time:1.5,hours}", "01:30:00"),
        ("${oc.timestring:}", "now"),
        ("${oc.mul:${oc.add:1,${l.1}},2}", 6),
        ("t${oc.create:true}", "ttrue"),
    ],
)
def test_resolvers(text, expected):
    """Arithmetic and joins, with or without the prefix, nested, on text from the environment too."""
    got = (
        value(text, l=[1, 2, 3]) if "timestring" not in text else resolved({"x": text}, timestamp="now")["x"]
    )
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    "text, says",
    [
        ("${slrum.nodes}", "did you mean `slurm"),
        ("${slurm.node}", "did you mean `slurm.nodes`"),
        ("${slurm.nodes.x}", "`slurm.nodes` is a number"),
        ("${HOME}/x", r"`\${HOME}`, for its value now `${oc.env:HOME}`"),
        ("${HOME:-/tmp}", r"`\${HOME}`"),
        ("${VAR%%.*}", r"`\${VAR}`"),
        ("${oc.env:WORKK}", "WORKK is not set"),
        ("${oc.ad:1}", "did you mean `oc.add`"),
        ("${oc.eval:1+1}", "never runs code"),
        ("${eval:1+1}", "use the arithmetic resolvers: oc.add"),
        ("${oc.add:x,1}", "`x` is not a number"),
        ("${oc.add:null,1}", "a null is not a number"),
        ("${oc.mul:true,1}", "a boolean is not a number"),
        ("${oc.div:1,0}", "`oc.div`"),
        ("${oc.divi:1,0}", "`oc.divi`"),
        ("${oc.sqrt:-1}", "`oc.sqrt`"),
        ("${oc.div:1}", "does not take 1 values"),
        ("${oc.len:3}", "has no length"),
        ("${oc.slice:3,1}", "cannot be sliced"),
        ("${oc.concat:[1],{a: 1}}", "has no text"),
        ("${oc.dict_merge:1}", "not a mapping"),
        ("${oc.format_time:1,days}", "unknown unit"),
        ("${oc.format_time:-1}", "negative"),
        ("${oc.mul:${oc.env:HF_TOKEN},1}", "`${HF_TOKEN}` is not a number"),
        ("${oc.timestring:}", "no time here"),
        ("${${n}:1}", "cannot be computed"),
        ("p${n}", "null has no text"),
        ("p${slurm}", "a mapping has no text"),
        ("${oc.select:1}", "a key must be text"),
        ("${oc.select:a,b,c}", "takes a key"),
        ("${oc.env:a,b,c}", "takes a name"),
        ("${oc.decode:1,2}", "takes one text"),
        ("${" * 300, "broken"),
    ],
)
def test_mistakes_are_explained(text, says):
    """The fault has the dotted key, the text, what is wrong and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        value(text, slurm={"nodes": 1}, n=None)
    (fault,) = caught.value.faults
    assert fault.key == "x" and fault.value == text and says in str(fault)


def test_a_circle_is_shown():
    """The chain of keys is printed from end to end."""
    with pytest.raises(ConfigError, match=r"a -> b\.c -> a"):
        resolved({"a": "${b.c}", "b": {"c": "x${a}"}})


def test_every_mistake_is_reported_once():
    """What only refers to a broken value is not complained about again."""
    with pytest.raises(ConfigError) as caught:
        resolved({"a": "${nope}", "b": "${a}", "c": ["${oc.env:NOPE}"], "d": "${a} ${b}", "e": "${"})
    assert sorted(fault.key for fault in caught.value.faults) == ["a", "c.0", "e"]


def test_secrets_are_references():
    """A secret's value never enters a resolved config; it must be set, unless there is a default."""
    secret = symbols.reference("HF_TOKEN")
    assert resolved({"x": "${oc.env:HF_TOKEN}", "y": "Bearer ${oc.env:HF_TOKEN,none}"}) == {
        "x": secret,
        "y": f"Bearer {secret}",
    }
    with pytest.raises(ConfigError, match="DB_PASSWORD is not set"):
        resolved({"x": "${oc.env:DB_PASSWORD}"})
    assert value("${oc.env:DB_PASSWORD,none}") == "none"


def test_older_spelling_of_variables():
    """`$NAME` within oc.env is the variable NAME."""
    assert value('${oc.env:$WORK,"./output"}') == "/work"
    assert value('${oc.env:$NOPE,"./output"}') == "./output"


def test_environment_is_the_process_environment_by_default(monkeypatch):
    """Without an environment of its own a tree reads the process's."""
    monkeypatch.setenv("AUTOEXP_TEST_VALUE", "7")
    assert os.environ["AUTOEXP_TEST_VALUE"] == Tree({"x": "${oc.env:AUTOEXP_TEST_VALUE}"}).folded["x"]


def test_keys_with_dots_match_longest_first():
    """`restart_policies.crash.nan` is found as one key, and shorter keys where that does not lead on."""
    raw = {
        "p": {"crash": {"m": 1, "deep": {"z": 9}}, "crash.nan": {"m": 2}, "crash.deep": {"y": 3}},
        "x": ["${p.crash.m}", "${p.crash.nan.m}", "${p.crash.deep.y}", "${p.crash.deep.z}"],
    }
    assert resolved(raw)["x"] == [1, 2, 3, 9]
