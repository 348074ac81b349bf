"""Class lists: whatever the form of the file, the names come out in the order that is meant, or a sentence says why not."""

import csv
import io
import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.paths import SourceError

NAMES = ["air drumming", "archery", "Tipping something, so it falls"]
NUMBERED = {
    "a space": "{i} {name}",
    "a tab": "{i}\t{name}",
    "a comma": "{i}, {name}",
    "a semicolon": "{i};{name}",
    "a colon": "{i}: {name}",
    "a point": "{i}. {name}",
    "a bracket": "{i}) {name}",
    "a dash": "{i} - {name}",
    "zeros before it": "{i:03d} {name}",
    "a decimal": "{i}.0,{name}",
    "quotes": '"{i}","{name}"',
    "a space, last": "{name} {i}",
    "a tab, last": "{name}\t{i}",
    "a comma, last": "{name},{i}",
    "a colon, last": "{name}: {i}",
    "quotes, last": '"{name}",{i}',
}
COUNTED = " (labels that are integers count from 0 all the same)"


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def numbered(form, names, first=0):
    return [form.format(i=i, name=name) for i, name in enumerate(names, first)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", NUMBERED.values(), ids=NUMBERED)
def test_numbers_decide_the_order(tmp_path, form, first):
    lines = numbered(form, NAMES, first)
    for order in (lines, lines[::-1], lines[1:] + lines[:1]):
        path = write(tmp_path / "classes.txt", "\n".join(order) + "\n")
        found = read_class_list(path)
        assert found.names == NAMES
        assert found.note == f"class names are those of {path}: 3 names, numbered from {first}{COUNTED * first}."


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: b"\xef\xbb\xbf" + text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r").encode("utf-8"),
        lambda text: b"\n \n" + text.replace("\n", " \t\n\n").encode("utf-8"),
    ],
    ids=["utf-8", "a mark", "two marks", "utf-16", "utf-16-be", "spreadsheet", "carriage returns", "blank lines"],
)
@pytest.mark.parametrize("form", ["{name}", "{i} {name}"])
def test_marks_and_line_ends_are_in_no_name(tmp_path, encode, form):
    names = ["café", "日本", "run"]
    text = "\n".join(numbered(form, names)) + "\n"
    assert read_class_list(write(tmp_path / "classes.txt", encode(text))).names == names


AB = ["a b", "c, d"]
LINES, LISTED, FROM_0, FROM_1 = "in the order of its lines", "in listed order", "numbered from 0", f"numbered from 1{COUNTED}"


def column(name, index, numbered=FROM_0):
    return f"column {name!r} in the order of column {index!r}, {numbered}"


@pytest.mark.parametrize(
    "content, names, how",
    [
        ("a b\nc, d\n", AB, LINES),
        ('a b\n"c, d"\n', AB, LINES),
        ("# made by hand\n\n# in 2024\na b\nc, d\n", AB, LINES + "; lines of comments at the top: 2"),
        ("name\na b\nc, d\n", AB, LINES + "; line 1, 'name', is its header"),
        ("names:\n0: a b\n1: c, d\n", AB, FROM_0 + "; line 1, 'names:', is its header"),
        ("id name\n1 c, d\n0 a b\n", AB, FROM_0 + "; line 1, 'id name', is its header"),
        ('id,name\n1,"c, d"\n0,a b\n', AB, column("name", "id")),
        ('name,index\n"c, d",1\na b,0\n', AB, column("name", "index")),
        ('index, name\n1, "c, d"\n0, "a b"\n', AB, column("name", "index")),
        ("category;name;id\nx;c, d;1\ny;a b;0\n", AB, column("name", "id")),
        ("Class ID;Class Name\n2;c, d\n1;a b\n", AB, column("Class Name", "Class ID", FROM_1)),
        ("class_id\tclass_name\n1\tc, d\n0\ta b\n", AB, column("class_name", "class_id")),
        ('label,class\n1,"c, d"\n0,a b\n', AB, column("class", "label")),
        ('label,class\n"c, d",1\na b,0\n', AB, column("label", "class")),
        ("verb,place\nrun,1\nclimb,2\n", ["run", "climb"], "column 'verb' in the order of its rows"),
        (',name\n1,"c, d"\n0,a b\n', AB, column("name", "")),
        ('id,key,instances,category\n1,"c, d",5,x\n0,a b,3,y\n', AB, column("key", "id")),
        ('verb_id,class_key,verbs\n0,a b,"[\'a\']"\n1,"c, d",[]\n', AB, column("class_key", "verb_id")),
        ('name,videos\na b,7\n"c, d",9\n', AB, "column 'name' in the order of its rows"),
        ('"id","name"\r\n"0","say ""a"""\r\n"1","b"\r\n', ['say "a"', "b"], column("name", "id")),
        (AB, AB, LISTED),
        ({"classes": AB, "shards": []}, AB, LISTED),
        ({"c, d": "1", "a b": "0"}, AB, FROM_0),
        ({"c, d": 2, "a b": 1}, AB, FROM_1),
        ({'"a b"': 0, "c, d": 1}, AB, FROM_0),  # quotes inside, as lists of Kinetics have them
        ({"1": "c, d", "0": "a b"}, AB, FROM_0),
        ({"names": {"1": "c, d", "0": "a b"}}, AB, FROM_0),
        ({"labels": 0, "classes": 1}, ["labels", "classes"], FROM_0),
        ([["a", "b"], ["c,", "d"]], AB, LISTED),
        ([{"name": "c, d", "id": 2}, {"name": "a b", "id": 1}], AB, column("name", "id", FROM_1)),
        (
            {
                "categories": [{"id": 0, "name": "a b", "supercategory": "x"}, {"id": 1, "name": "c, d", "supercategory": "x"}],
                "images": [],
            },
            AB,
            column("name", "id"),
        ),
        # names that are numbers, or have one
        ("id\n7\n5\n", ["7", "5"], LINES + "; line 1, 'id', is its header"),
        ("1\n2\n3\n", ["1", "2", "3"], LINES),
        ("0,7\n1,5\n", ["7", "5"], FROM_0),
        ("7,0\n5,1\n", ["7", "5"], FROM_0),
        ("1,0\n0,1\n", ["1", "0"], FROM_0),  # whichever is the index
        ("archery\nlevel 1\nlevel 2\nlevel 3\n", ["archery", "level 1", "level 2", "level 3"], LINES),
        ("index,name\n1,0\n0,1\n", ["1", "0"], column("name", "index")),
        ({"7": 0, "5": 1}, ["7", "5"], FROM_0),
        ("100 metres\n3 point shot\narchery\n", ["100 metres", "3 point shot", "archery"], LINES),
        ("100 metres\n200 metres\n", ["100 metres", "200 metres"], LINES),
        ("class 0\nclass 1\n", ["class 0", "class 1"], LINES),
        ("1 dog\n2 dog\n3 dog\n", ["1 dog", "2 dog", "3 dog"], LINES),
        ("0 level 1\n1 level 2\n", ["level 1", "level 2"], FROM_0),
        ("Acura RL 2012\nAudi A4 2012\nBMW 2007\n", ["Acura RL 2012", "Audi A4 2012", "BMW 2007"], LINES),
        ("001.ak47\n002.flag\n", ["001.ak47", "002.flag"], LINES),  # names of Caltech's folders
        (["1 dog", "3 dogs"], ["1 dog", "3 dogs"], LISTED),
        ("[Something] falls\nrun\n", ["[Something] falls", "run"], LINES),
    ],
)
def test_every_form_is_understood_and_said(tmp_path, content, names, how):
    path = write(tmp_path / ("classes.txt" if isinstance(content, str) else "labels.json"), content)
    assert read_class_list(path) == (names, f"class names are those of {path}: {len(names)} names, {how}.")


NUMBERS = "numbers begin at 0 or 1 and leave none out; if the numbers belong to the names, give the names as a JSON list"


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "it is empty, without any class name"),
        ("# nothing\n", "it is empty"),
        ([], "it is empty"),
        ("name\n", "it is empty"),
        ("id,name\n", "its only line is 'id,name': write one name per line, and below the header if that is one"),
        ("run, climb, swim\n", "its only line is 'run, climb, swim': write one name per line"),
        ("a.mp4 0\nb.mp4 1\n", "'a.mp4' is a video's name: give a list of classes, not of videos"),
        ("9999999999 run\n1 climb\n", "line 1 has the number 9999999999, but no name has 2"),
        ("run\nclimb\n run \n", "it names 'run' more than once"),
        (["run", "run "], "it names 'run' more than once"),
        ('{"run": 0, "run": 1}', "it names 'run' more than once"),
        ("0 run\n1 climb\n2 run\n", "it names 'run' more than once"),
        ("0 run\n2 climb\n", f"line 2 has the number 2, but no name has 1: {NUMBERS}"),
        ("2,run\n3,climb\n", "line 2 has the number 3, but no name has 1"),
        ("-1,none\n0,run\n", "line 1 has the number -1, but no name has 1"),
        ("0 run\n1 climb\n\n1 swim\n", "line 2 and line 4 both have the number 1"),
        ("1 dog\n3 dogs\n", f"line 2 has the number 3, but no name has 2: {NUMBERS}"),
        ("run 0\nclimb 5\n", "line 2 has the number 5"),
        ("0 run\n1\n2 swim\n", "line 2 has a number and no name"),
        ("0,run\n1,\n", "line 2 has a number and no name"),
        ("0 run\n1 climb\nswim\n3 jump\n", "line 3 has no number, but 3 of 4 lines are numbered: number all lines or none"),
        ("my verbs\n0 run\n1 climb\n2 swim\n", "line 1 has no number, but 3 of 4 lines are numbered"),
        ("0,run,sport\n1,climb,sport\n", "it has 3 columns and no header: name them in a first line, as index,name"),
        ("n01440764\ttench\nn0144\tgoldfish\n", "has a tab: name the columns in a first line"),
        ("what,place\nrun,0\nclimb,1\n", "line 1 has no number, but 2 of 3 lines are numbered"),
        ("verb,place\nrun,1\nclimb,0\n", "column 'place' numbers the names in another order: keep only"),
        ("id,index,name\n0,1,run\n1,0,climb\n", "column 'index' numbers the names in another order: keep only"),
        ("1,0\n2,1\n", "either of its two numbers may be the index"),
        ("id,name\n0,run\n2,climb\n", "line 3 has the number 2, but no name has 1"),
        ("id,name\n0,run\nx,climb\n", "line 3 has 'x' in column 'id', which must hold integers"),
        ("id,name\n0,a, b\n1,c\n", "line 2 has 3 columns, but the header 2: put names with a comma in quotes"),
        ("id,name\n0,run\n1,\n", "class 1 (from 0) has no name"),
        ("label,class\n0,5\n1,7\n", "more than one of its columns may be the index"),
        ('["run", "climb"', "it is not JSON (Expecting ',' delimiter"),
        ("{0: 'run', 1: 'climb'}", "it is not JSON (Expecting property name"),
        ({"x": "0", "y": "2"}, "'y' has the number 2, but no name has 1"),
        ({"x": 10**400}, "'x' has the number 1000"),
        ("[" * 10**5, "recursion"),
        ({"x": 0, "y": 0}, "'x' and 'y' both have the number 0"),
        ({"0": "run", "2": "climb"}, "'2' has the number 2, but no name has 1"),
        (["run", ""], "class 1 (from 0) has no name"),
        ([{"id": 0, "name": "run"}, {"id": 1}], "class 1 (from 0) has no name"),
        ([{"id": 0, "colour": "run", "x": 1}], "none of its columns is called name"),
        *[
            (wrong, "it is none of these: one name per line")
            for wrong in (
                {"x": "a"},
                {"classes": "xy", "shards": 3},
                [1, 2],
                5,
                {"x": None},
                {"x": True},
                {},
                {"0": ["n01", "tench"]},
            )
        ],
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, content, message):
    path = write(tmp_path / ("classes.txt" if isinstance(content, str) else "wrong.json"), content)
    with pytest.raises(SourceError) as error:
        read_class_list(path)
    assert str(error.value).startswith(f"the class list {path} cannot be used: ") and message in str(error.value)


@pytest.mark.parametrize(
    "data, line, byte",
    [
        ("run\ncafé\n".encode("latin-1"), 2, "0xe9"),
        ("r€".encode("cp1252"), 1, "0x80"),
        ("run".encode("utf-16-le"), 1, "0x00"),
        (b"\x00\x00\x00\x18ftypmp42", 1, "0x00"),
    ],
)
def test_a_file_in_another_encoding_gives_no_wrong_name(tmp_path, data, line, byte):
    with pytest.raises(SourceError, match=rf"\(line {line} has the byte {byte}\): save it as UTF-8"):
        read_class_list(write(tmp_path / "classes.txt", data))


def test_shards_give_the_names_of_their_manifest_as_they_are(tmp_path):
    with pytest.raises(SourceError, match="a folder without a manifest.json: give shards, or a file of class names"):
        read_class_list(tmp_path)
    write(tmp_path / "manifest.json", {"classes": ["0 run", "1 climb ", '"x"'], "shards": []})
    assert read_class_list(tmp_path).names == ["0 run", "1 climb ", '"x"']  # the labels that were stored


NAME = (
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and "\ufeff" not in name)
)


def as_csv(names, order, header, first):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([name, i + first] if header[0] == "name" else [i + first, name] for i, name in order(enumerate(names)))
    return text.getvalue()


@settings(max_examples=80, deadline=None)
@given(names=st.lists(NAME, min_size=1, max_size=6, unique=True), first=st.integers(0, 1), seed=st.integers(0, 99))
@example(names=["0", "1"], first=0, seed=0)
@example(names=["#a", '"b"', "a,b", "id", "name"], first=1, seed=1)
def test_names_come_back_from_every_form(tmp_path_factory, names, first, seed):
    folder = tmp_path_factory.mktemp("lists")

    def shuffled(rows):
        return random.Random(seed).sample(rows := list(rows), len(rows))

    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    for content in (
        names,
        {"classes": names, "shards": []},
        {str(i + first): name for i, name in shuffled(enumerate(names))},
        [{"id": i + first, "name": name} for i, name in shuffled(enumerate(names))],
        as_csv(names, shuffled, ["index", "name"], first),
        as_csv(names, shuffled, ["name", "index"], first),
        "name\n" + "".join(f"{name}\n" for name in quoted),
        "index\tname\n" + "".join(f"{i + first}\t{name}\n" for i, name in shuffled(enumerate(quoted))),
    ):
        if isinstance(content, dict) and "classes" not in content and all(name.isdigit() for name in names):
            continue  # {"0": "1"}: neither need be the index
        path = write(folder / ("list.csv" if isinstance(content, str) else "list.json"), content)
        assert read_class_list(path).names == names, content
