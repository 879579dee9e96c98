"""The oracle of this package's tests: pandas, called as the original drivers call it.

    python3 make_golden.py            writes read_golden.json and write_golden.json beside itself
    python3 make_golden.py --serve    answers one JSON request per line on stdin (TestAgainstPandas)

Goldens were made with pandas 3.1.1, Python 3.11.
"""

import base64
import csv
import datetime
import decimal
import io
import json
import os
import sys
import warnings

import numpy as np
import pandas as pd


def read(content, config):
    """Answers what the original extractor makes of content: dtype and values by column, and to_csv's bytes."""
    params = {"sep": config.get("delimiter", ","), "encoding": config.get("encoding", "utf-8"), "low_memory": False}
    header = config.get("header", True)
    params["header"] = (0 if header else None) if isinstance(header, bool) else header
    for key, name in (("columns", "usecols"), ("limit", "nrows"), ("parse_dates", "parse_dates"), ("dtype", "dtype"),
                      ("na_values", "na_values"), ("comment", "comment"), ("on_bad_lines", "on_bad_lines"),
                      ("skip_rows", "skiprows"), ("skip_blank_lines", "skip_blank_lines")):
        if key in config:
            params[name] = config[key]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            df = pd.read_csv(io.BytesIO(content), **params)
            if "columns" in config:
                df = df[config["columns"]]
    except pd.errors.EmptyDataError:
        return {"columns": [], "csv": None}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}".strip()}
    # Values alone do not tell, since [False] == [0]; nor does the type: [7, 5] may become a range.
    if not isinstance(df.index, pd.RangeIndex) or not df.index.equals(pd.RangeIndex(len(df))):
        return {"error": "implicit index"}
    df.columns = [str(c) for c in df.columns]
    columns = []
    for i, name in enumerate(df.columns):
        s = df.iloc[:, i]
        columns.append({"name": name, "type": arrow_type(s), "values": [text(v) for v in s.tolist()]})
    if any("\r" in v for c in columns for v in c["values"] if v is not None):
        return {"columns": columns, "csv": None}  # the writer quotes \r, as Python 3.13 does
    return {"columns": columns, "csv": encode(df[sorted(df.columns)].to_csv(index=False, lineterminator="\n"))}


def arrow_type(s):
    t = str(s.dtype)
    if t == "object":
        return "bool" if any(isinstance(v, bool) for v in s) else "utf8"
    if t.startswith("datetime64["):
        unit, _, zone = t[len("datetime64["):-1].partition(", ")
        zone = zone.replace("UTC+", "+").replace("UTC-", "-")
        return f"timestamp[{unit.replace('s', 'us') if unit == 's' else unit}" + (f", tz={zone}]" if zone else "]")
    return {"str": "utf8", "Int64": "int64", "boolean": "bool"}.get(t, t)


def text(v):
    if v is None or v is pd.NaT or v is pd.NA or (isinstance(v, float) and np.isnan(v)):
        return None
    if isinstance(v, float):
        return repr(v)
    if isinstance(v, pd.Timestamp):
        return v.tz_convert("UTC").tz_localize(None).isoformat() if v.tz else v.isoformat()
    return str(v)


def encode(s):
    return base64.b64encode(s if isinstance(s, bytes) else s.encode()).decode()


def series(column):
    values, t = column["values"], column["type"]

    def each(f):
        return [None if v is None else f(v) for v in values]

    if t == "utf8":
        return pd.Series(each(str), dtype=object)
    if t == "bool":
        return pd.Series(each(lambda v: v == "true"), dtype=object if None in values else bool)
    if t.startswith("float"):
        return pd.Series([np.nan if v is None else float(v) for v in values], dtype=t)
    if "int" in t:
        if None in values:
            return pd.Series(each(int), dtype=object)
        return pd.Series(each(int), dtype=t)
    if t.startswith("timestamp["):
        unit, _, zone = t[len("timestamp["):-1].partition(", tz=")
        s = pd.Series(pd.to_datetime(pd.Series(each(pd.Timestamp), dtype=object))).dt.as_unit(unit)
        return s.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else s
    if t.startswith("duration["):
        return pd.Series(each(lambda v: np.timedelta64(int(v.rstrip("nus")), t[len("duration["):-1])), dtype="timedelta64[%s]" % t[len("duration["):-1])
    if t == "date32":
        return pd.Series(each(datetime.date.fromisoformat), dtype=object)
    if t.startswith("time64"):
        return pd.Series(each(datetime.time.fromisoformat), dtype=object)
    if t.startswith("decimal"):
        return pd.Series(each(decimal.Decimal), dtype=object)
    raise ValueError(t)


def write(columns, config):
    """Answers the bytes the original writer makes of a table."""
    df = pd.DataFrame({c["name"]: series(c) for c in columns})
    df = df[sorted(df.columns)]
    quoting = {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL, "nonnumeric": csv.QUOTE_NONNUMERIC}
    path = f"/tmp/golden-{os.getpid()}.csv"
    try:
        df.to_csv(path, index=False, sep=config.get("delimiter", ","), header=config.get("header", True),
                  encoding=config.get("encoding", "utf-8"), quoting=quoting[config.get("quoting", "minimal")],
                  lineterminator={"lf": "\n", "crlf": "\r\n", "cr": "\r"}[config.get("newline", "lf")])
        with open(path, "rb") as f:
            return {"csv": encode(f.read())}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}
    finally:
        if os.path.exists(path):
            os.remove(path)


def read_cases():
    def case(name, content, **config):
        content = content if isinstance(content, bytes) else content.encode()
        return {"name": name, "input": encode(content), "config": config, "want": read(content, config)}

    columns = {
        "int spaces": " 3 |\t4|5", "int signs": "+1|-2|-0", "leading zeros": "007|010", "underscore": "1_000|2",
        "int64 bounds": "9223372036854775807|-9223372036854775808", "uint64": "9223372036854775808|1|+2",
        "uint64 negative": "9223372036854775808|-1", "uint64 missing": "9223372036854775808|NA|",
        "uint64 float": "9223372036854775808|1.5", "uint64 minus text": "9223372036854775808|-x",
        "uint64 minus float": "9223372036854775808|-1.5", "uint64 text": "9223372036854775808|x",
        "big": "18446744073709551616|007||NA|+7| 5 ", "big underscore": "18446744073709551616|1_000", "big float": "18446744073709551616|1.5", "float big": "1.5|18446744073709551616",
        "big text": "18446744073709551616|x", "below int64": "-9223372036854775809|-1", "below int64 float": "-9223372036854775809|1.5",
        "below and above": "-9223372036854775809|9223372036854775808", "uint then big then float": "9223372036854775808|18446744073709551616|1.5",
        "uint then float then big": "9223372036854775808|1.5|18446744073709551616", "big trailing space": "18446744073709551616 |1",
        "int missing": "1||3", "zero missing": "-0||3", "na like float": "-0||007|-999.0", "floats": "1.5|.5|5.|1e5|1E-5|+.5e+3|-0.0|1e400|1e-400|0e999", "float spaces": " 1.5 |2\v",
        "infinities": "inf|-Infinity|+INF|infinity", "not floats 1": "1e", "not floats 2": ".", "not floats 3": "0x10",
        "not floats 4": "inf |1", "not floats 5": "NAN|1.5", "not floats 6": "1.2.3", "not floats 7": "--1", "not floats 8": "1 2",
        "long float": "0.1234567890123456789012345|123456789012345678.9", "float hard": "9007199254740993.0|2.2250738585072011e-308|1.7976931348623159e308",
        "bools": "True|false|TRUE|tRuE", "bool missing": "True||NA", "bool late": "||True", "bool text": "True|x", "bool space": " true|false",
        "int then bool": "1|True", "bool then int": "True|1", "all missing": "|NA|null", "na set": "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null|x",
        "na like": "Na|none|NULL |x", "phones": "555-0101|555-0102", "dates": "2024-01-15|2024-02-01", "text": "a|b|", "mixed": "1|x|1.5", "float text": "1.5|x",
        "unicode": "žluť|日本|😀",
    }
    for name, values in columns.items():
        yield case(name, "a,b\n" + "".join(f"{v},1\n" for v in values.split("|")))
    structure = {
        "quotes": 'a,b\n1,"x""y"\n2,x"y\n3,"x"y\n4,"x"y"z\n5,"x" \n6,""\n7,""""\n', "quoted space": 'a,b\n1, "x y"\n', "quoted delimiter": 'a,b\n1,"x,y"\n"3","4"\n',
        "quoted newline": 'a,b\n1,"x\ny"\n2,"x\r\ny"\n3,"x\ry"\n', "bare after quote": 'a,b\n1,"x"y""z"\n',
        "unterminated": 'a,b\n1,"x\n', "unterminated late": 'a,b\n1,2\n3,"x\ny\n', "quote at eof": 'a,b\n1,"x"', "doubled at eof": 'a,b\n1,"x""',
        "crlf": "a,b\r\n1,2\r\n\r\n3,4", "cr": "a,b\r1,2\r\r3,4\r", "cr in row": "a,b\n1\r,2\n", "mixed ends": "a,b\n1,2\r3,4\r\n5,6",
        "blank lines": "\n\na,b\n\n1,2\n  \n\t\n3,4\n   ", "blank one column": "a\n\n1\n  \n2\n", "leading blanks": "a,b\n 1,2\n\t3,4\n", "quoted blank": 'a,b\n""\n1,2\n',
        "short rows": "a,b,c\n1,2\n4\n", "long row": "a,b\n1,2\n4,5,6\n", "index": "a,b\n1,2,3\n4,5,6\n", "trailing delimiter": "a,b,\n1,2,\n",
        "duplicates": "a,a,a\n1,2,3\n", "duplicates taken": "a,a,a.1\n1,2,3\n", "duplicates taken 2": "a,a.1,a,a\n1,2,3,4\n", "unnamed": ",b,\n1,2,3\n",
        "unnamed taken": ",Unnamed: 0\n1,2\n", "empty": "", "only blank": "\n \n", "header only": "a,b\n", "header no end": "a,b", "nul": "a,b\n1,x\0y\n2,\0\n",
        "bom": "\ufeffa,b\n1,2\n", "bom quoted": '\ufeff"a",b\n1,2\n', "one field rows": "a\nx\ny", "comma only": "a,b\n,\n1,\n", "last empty": "a,b\n1,",
        "header spaces": " a , b\n1,2\n",
    }
    for name, content in structure.items():
        yield case(name, content)
    yield case("tab", "a\tb\n1\t \n\t2\n", delimiter="\t")
    yield case("semicolon", "a;b\n1,5;2\n", delimiter=";")
    yield case("space delimiter", "a b\n1 2\n 3\n", delimiter=" ")
    yield case("no header", "1,2\n3,x\n", header=False)
    yield case("no header short", "1,2,3\n3\n", header=False)
    yield case("no header long", "1,2\n3,4\n5,6,7\n", header=False)
    yield case("header 1", "x,y,z\n\na,b\n1,2\n", header=1)
    yield case("header beyond", "x\n", header=1)
    yield case("header beyond empty", "", header=1)
    yield case("columns", "a,b,c\n1,2,3\n4,5,6,7\n8\n", columns=["c", "a"])
    yield case("columns all", "a,b\n1,2,3\n", columns=["b", "a"])
    yield case("columns unknown", "a,b\n1,2\n", columns=["b", "c"])
    yield case("columns index", "a,b\n1,2,3\n", columns=["b"])
    yield case("skip rows", "j\nk\n\na,b\n1,2\n", skip_rows=2)
    yield case("skip rows quoted", '"j\nk"z\na,b\n1,2\n', skip_rows=1)
    yield case("skip rows bare quote", 'j"k\na,b\n1"x,2\n', skip_rows=1)
    yield case("skip rows crlf", "x\r\na,b\r\n1,2\r\n", skip_rows=1)
    yield case("skip rows all", "a\n1\n", skip_rows=5)
    yield case("limit", "a,b\n1,2\nx,y\n", limit=1)
    yield case("limit before bad", 'a,b\n1,2\nx,4,5\n', limit=1)
    yield case("limit over", "a,b\n1,2\n", limit=10)
    yield case("comment", 'a,b#c\n1,2#x\n#y\n3#,4\n  #z\n5,"x#y"\n6,"x"#y\n', comment="#")
    yield case("comment empty field", "a,b\n1,#x\n#", comment="#")
    yield case("keep blank", "a,b\n\n1,2\n  \n", skip_blank_lines=False)
    yield case("keep blank comment", "a,b\n#\n\n1,2\n", skip_blank_lines=False, comment="#")
    for text in ("\n1\t2\n", "\n\n", "\n"):
        yield case("blank first row", text, header=False, delimiter="\t", skip_blank_lines=False)
    yield case("blank first row, a row skipped", "x,y\n\n1,2,3\n", header=False, skip_rows=1, skip_blank_lines=False)
    yield case("bad skip", "a,b\n1,2\n4,5,6\n7,8\n", on_bad_lines="skip")
    yield case("bad warn", "a,b\n1,2\n4,5,6\n7,8\n", on_bad_lines="warn")
    yield case("na text", "a,b\nx,1\n-,2\n", na_values=["-"])
    yield case("na int", "a,b\n-999,1\n1,2\n", na_values=["-999"])
    yield case("na int as float", "a,b\n-999.00,1\n1.5,2\n", na_values=["-999"])
    yield case("na number", "a,b\n1.50,1\n2,2\n", na_values=["1.5"])
    yield case("na zeros", "a,b\n01,1\n2,1\n5,1\n", na_values=["1"])
    yield case("na bool", "a,b\nTrue,1\nfalse,1\n", na_values=["True"])
    yield case("na raw", "a,b\n9223372036854775808,1\n1,1\n", na_values=["1"])
    for t in ("int64", "int32", "int8", "uint8", "uint64", "float64", "float32", "str", "object", "bool", "Int64", "boolean"):
        for name, values in {"ints": "1|2", "missing": "1|", "floats": "1.5|2", "whole": "1.0|2", "big": "300|1", "negative": "-1|1", "text": "x|1", "bools": "True|false", "bools missing": "True|"}.items():
            if t.startswith(("int", "uint", "Int")) and name.startswith("bool"):
                continue  # a deviation
            if t == "boolean" and name in ("ints", "missing", "whole", "negative"):
                continue  # pandas takes 1 and 1.0 here
            yield case(f"dtype {t} {name}", "a,b\n" + "".join(f"{v},x\n" for v in values.split("|")), dtype={"a": t})
    yield case("dtype zeros", "a,b\n007,1\n", dtype={"a": "str"})
    yield case("dtype duplicate", "a,a\n1,2\n", dtype={"a": "float64"})
    yield case("dtype absent", "a,b\n1,2\n", dtype={"c": "int64"})
    yield case("dtype no rows", "a,b\n", dtype={"a": "int64"})
    dates = {
        "iso": "2024-01-15|2024-02-01", "missing": "2024-01-15||NaT", "T": "2024-01-15T10:00:00|2024-01-15T10:00:01", "mixed T": "2024-01-15T10:00:00|2024-02-01 11:00:00",
        "Z": "2024-01-15T10:00:00Z|2024-01-15T10:00:00+00:00", "offset": "2024-01-15 10:00:00+02:00|2024-01-15 11:00:00+02:00", "offsets": "2024-01-15 10:00:00+02:00|2024-01-15 10:00:00+03:00",
        "us": "01/15/2024|02/01/2024", "day first": "13/01/2024|14/02/2024", "day later": "01/02/2024|13/01/2024", "bad": "2024-01-15|x", "mixed time": "2024-01-15|2024-01-15 10:00",
        "micro": "2024-01-15 10:00:00.123456|2024-01-15 10:00:00.5", "nano": "2024-01-15 10:00:00.123456789|2024-01-15 10:00:00.1", "mixed fraction": "2024-01-15 10:00:00.1|2024-01-15 10:00:00",
        "compact": "20240115|20240201", "number": "1|2", "float": "1.5|2", "all missing": "NA|", "hours": "2024-01-15T10|2024-01-15T11", "minutes": "2024-01-15 10:30|2024-01-15 11:00", "short offset": "2024-01-15T10:00:00+0200",
        "old": "0001-01-01|9999-12-31", "impossible": "2024-02-30", "leap": "2024-02-29|2000-02-29", "slashes": "2024/01/15", "us time": "01/15/2024 10:00:00|01/16/2024 11:00:00", "us fraction": "01/15/2024 10:00:00.5",
        "spaces": " 2024-01-15", "hour 24": "2024-01-15 24:00:00", "month": "2024-01|2024-02", "year": "2024|2025", "negative offset": "2024-01-15 10:00:00-05:30",
    }
    for name, values in dates.items():
        yield case(f"date {name}", "d,x\n" + "".join(f"{v},1\n" for v in values.split("|")), parse_dates=["d"])
    yield case("date true", "d,x\n2024-01-15,1\n", parse_dates=True)
    yield case("date unknown", "d,x\n2024-01-15,1\n", parse_dates=["q"])
    yield case("date no rows", "d,x\n", parse_dates=["d"])
    yield case("utf-16", "a,b\n1,ž😀\n".encode("utf-16"), encoding="utf-16")
    yield case("utf-16 be", b"\xfe\xff" + "a,b\n1,ž\n".encode("utf-16-be"), encoding="utf-16")
    yield case("utf-16 no mark", "a,b\n1,2\n".encode("utf-16-le"), encoding="utf-16")
    yield case("latin-1", "a,b\n1,é\x80\n".encode("latin-1"), encoding="latin-1")
    yield case("iso-8859-1", "a,b\n1,é\n".encode("latin-1"), encoding="iso-8859-1")
    yield case("iso-8859-2", "a,b\n1,žluť\n".encode("iso-8859-2"), encoding="iso-8859-2")
    yield case("cp1250", "a,b\n1,žluť\n".encode("cp1250"), encoding="cp1250")
    yield case("shift_jis", "a,b\n1,日本\n".encode("shift_jis"), encoding="shift_jis")
    yield case("shift_jis bad", b"a,b\n1,\x85\xff\n", encoding="shift_jis")
    yield case("utf-8 bad", b"a,b\n1,\xff\n")
    yield case("utf-8 cut", "a,b\n1,ž".encode()[:-1])
    yield case("ascii bad", "a,b\n1,é\n".encode(), encoding="ascii")


    here = os.path.dirname(os.path.abspath(__file__))
    for name in sorted(os.listdir(here)):
        if name.endswith(".csv"):
            with open(os.path.join(here, name), "rb") as f:
                yield case("file " + name, f.read())


def write_cases():
    def case(name, columns, **config):
        columns = [{"name": n, "type": t, "values": v} for n, t, v in columns]
        return {"name": name, "columns": columns, "config": config, "want": write(columns, config)}

    mixed = [("b", "int64", ["1", "-2"]), ("a", "float64", ["1.5", None]), ("C", "utf8", ["x", None]), ("d", "bool", ["true", "false"]), ("é", "timestamp[us]", ["2024-01-15T00:00:00", None])]
    yield case("mixed", mixed)
    for quoting in ("all", "nonnumeric"):
        yield case("mixed " + quoting, mixed, quoting=quoting)
    for newline in ("crlf", "cr"):
        yield case("mixed " + newline, mixed, newline=newline)
    yield case("mixed no header", mixed, header=False)
    yield case("mixed tab", mixed, delimiter="\t")
    yield case("floats", [("a", "float64", ["0.1", "1e16", "9999999999999998", "1e-05", "0.0001", "inf", "-inf", None, "123456789012345680", "1e22", "5e-324", "-0.0", "0", "1", "100000", "1.7976931348623157e308"]), ("b", "int64", ["1"] * 16)])
    yield case("float32", [("a", "float32", ["0.1", "1e16", "1e-05", "999999", "1000000", "16777216", "0.001", "0.0001", "0.00012345", "3.4e38", "inf", None]), ("b", "int64", ["1"] * 12)])
    yield case("float16", [("a", "float16", ["0.0999755859375", "65504", "1000", "999", "2048", "0.33300781", "1.5"]), ("b", "int64", ["1"] * 7)])
    yield case("ints", [("a", "uint64", ["18446744073709551615"]), ("b", "int8", ["-128"]), ("c", "uint32", ["4294967295"])])
    yield case("one column", [("a", "utf8", [None, "x", ""])])
    yield case("one column int", [("a", "float64", [None, "1"])])
    yield case("one column unnamed", [("", "int64", ["1"])])
    yield case("quotes", [("a", "utf8", ["x\ny", " x", 'x"y', "x,y", "x;y", '"', "", "'"]), ("b,c", "int64", ["1"] * 8)])
    yield case("quotes crlf", [("a", "utf8", ["x\ry", "x\ny"]), ("b", "int64", ["1", "2"])], newline="crlf")
    yield case("delimiter minus", [("a", "int64", ["-1"]), ("b", "float64", ["1.5"])], delimiter="-")
    yield case("no rows", [("b", "utf8", []), ("a", "int64", [])])
    yield case("no columns", [])
    yield case("bool missing", [("a", "bool", ["true", None]), ("b", "int64", ["1", "2"])])
    for name, t, values in (
        ("days", "timestamp[us]", ["2024-01-15T00:00:00", None]), ("seconds", "timestamp[us]", ["2024-01-15T10:00:00", "2024-01-15T00:00:00"]),
        ("milliseconds", "timestamp[us]", ["2024-01-15T10:00:00.5", "2024-01-15T00:00:00"]), ("microseconds", "timestamp[ns]", ["2024-01-15T10:00:00.123456", "2024-01-15T00:00:00"]),
        ("nanoseconds", "timestamp[ns]", ["2024-01-15T10:00:00.123456789", "2024-01-15T00:00:00"]), ("utc", "timestamp[us, tz=UTC]", ["2024-01-15T00:00:00", None]),
        ("zone", "timestamp[us, tz=Europe/Prague]", ["2024-01-15T10:00:00", "2024-07-15T10:00:00.5"]), ("old", "timestamp[us]", ["0001-01-01T00:00:00"]), ("before 1970", "timestamp[us]", ["1969-12-31T23:59:59.5"]),
        ("duration days", "duration[us]", ["86400000000us", None]), ("duration", "duration[us]", ["93784000000us", "-1000000us"]), ("duration millis", "duration[us]", ["500000us", "1us"]), ("duration half", "duration[us]", ["500000us"]), ("duration nanos", "duration[ns]", ["1ns", "1000000000ns"]),
        ("date", "date32", ["2024-01-15", None]), ("time", "time64[us]", ["01:02:03", "01:02:03.000500"]), ("decimal", "decimal(10, 2)", ["1.50", None]),
    ):
        yield case(name, [("a", t, values), ("b", "int64", ["1"] * len(values))])
    yield case("utf-16", [("é", "utf8", ["ž😀"])], encoding="utf-16")
    yield case("utf-8-sig", [("é", "utf8", ["ž"])], encoding="utf-8-sig")
    yield case("latin-1", [("é", "utf8", ["ü"])], encoding="latin-1")
    yield case("latin-1 misfit", [("é", "utf8", ["ž"])], encoding="latin-1")
    yield case("ascii misfit", [("a", "utf8", ["é"])], encoding="ascii")
    yield case("cp1250", [("a", "utf8", ["žluť"])], encoding="cp1250")


def serve():
    for line in sys.stdin:
        request = json.loads(line)
        if "input" in request:
            answer = read(base64.b64decode(request["input"]), request["config"])
        else:
            answer = write(request["columns"], request["config"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        here = os.path.dirname(os.path.abspath(__file__))
        for name, cases in (("read", read_cases()), ("write", write_cases())):
            with open(os.path.join(here, name + "_golden.json"), "w", newline="\n") as f:
                f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]\n")
