"""Drivers that have to do with tables."""

import decimal
import datetime
import os
import time

import numpy as np
import pandas as pd
import pyarrow as pa


class Pass:
    """Returns its input."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        return {"df": inputs["df"]}


class Same:
    """Two names of one table are one DataFrame."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        return {"same": inputs["df"] is inputs["df_a"], "names": sorted(inputs)}


class Change:
    """Changes every column of its input in place."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        df = inputs["df"]
        for i in range(df.shape[1]):
            df.iloc[0, i] = df.iloc[1, i]
        return {"df": df.iloc[:2]}


class Look:
    """Returns for each column of its input the dtype and the first and last cells."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        def cell(x):
            return "%s %s" % (type(x).__name__.replace("bool_", "bool"), x)

        df = inputs["df"]
        return {c: [str(df[c].dtype), cell(df[c].iloc[0]), cell(df[c].iloc[-1])] for c in df.columns}


class Peer:
    """What pyarrow itself takes to write a table, map it, and make a DataFrame and a table of it again."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        with pa.memory_map(config["file"]) as f:
            table = pa.ipc.open_stream(f).read_all().combine_chunks()
        best = {}
        for _ in range(config["rounds"]):
            path = config["file"] + ".peer"
            t0 = time.perf_counter()
            with pa.OSFile(path, "wb") as f, pa.ipc.new_file(f, table.schema) as w:
                w.write_table(table)
            t1 = time.perf_counter()
            mapped = pa.ipc.open_file(pa.memory_map(path)).read_all()
            frame = mapped.to_pandas()
            t2 = time.perf_counter()
            pa.Table.from_pandas(frame)
            t3 = time.perf_counter()
            del mapped, frame
            os.unlink(path)
            if not best or t3 - t0 < best["total"]:
                best = {"total": t3 - t0, "write": t1 - t0, "to_pandas": t2 - t1, "from_pandas": t3 - t2}
        best["bytes"] = table.nbytes
        return best


class Sample:
    """Puts out a table as usual ones are: numbers, times, texts, categories, some of it null."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        n = config["rows"]
        rng = np.random.default_rng(1)
        ids = np.arange(n)
        table = pa.table(
            {
                "id": ids,
                "quantity": rng.integers(0, 1000, n),
                "price": rng.random(n),
                "score": pa.array(rng.random(n), mask=rng.random(n) < 0.1),
                "at": pa.array(ids * 1000, pa.timestamp("us")),
                "paid": rng.random(n) < 0.5,
                "name": pa.array(["customer-%06d" % i for i in range(1000)]).take(pa.array(ids % 1000)),
                "code": pa.array(ids).cast(pa.string()),
                "country": pa.DictionaryArray.from_arrays(pa.array(ids % 4, pa.int8()), ["cz", "de", "fr", "sk"]),
                "weight": rng.random(n),
                "width": rng.random(n),
            }
        )
        return {"df": table}


class Kinds:
    """Puts out all kinds of tables."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        table = pa.table({"a": [1, 2, 3]})
        out = {
            "df": pd.DataFrame({"a": [1, 2, 3]}, index=[7, 8, 9]),
            "table": table,
            "batch": table.to_batches()[0],
            "reader": pa.RecordBatchReader.from_batches(table.schema, iter([table.slice(0, 1).combine_chunks().to_batches()[0], table.slice(1).combine_chunks().to_batches()[0]])),
            "rows": np.int64(3),
            "when": datetime.date(2026, 1, 2),
            "share": float("nan"),
            "price": decimal.Decimal("1.10"),
            "list": np.arange(2),
        }

        class Stream:
            def __arrow_c_stream__(self, requested_schema=None):
                return table.__arrow_c_stream__(requested_schema)

        out["stream"] = Stream()
        return out


class Wrong:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        return {
            "list": lambda: [1],
            "key": lambda: {1: 2},
            "series": lambda: {"df": pd.Series([1])},
            "object": lambda: {"x": object()},
            "twice": lambda: {"df": pd.DataFrame([[1, 2]], columns=["a", "a"])},
            "half": lambda: {"a": pd.DataFrame({"a": [1]}), "b": pd.DataFrame({"a": [1, "x"]})},
            "mixed": lambda: {"df": pd.DataFrame({"a": [1, "x"]})},
        }[config["what"]]()


class Large:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        n = config["rows"]
        return {"df": pd.DataFrame({"id": np.arange(n), "x": np.arange(n) / 2, "name": pd.Categorical.from_codes(np.arange(n) % 3, ["a", "b", "c"])})}


class Frames:
    """Puts out a frame with all that pandas has, and then checks that it has come back as it was."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        frames = make_frames()
        if not inputs:
            return frames
        for name, want in frames.items():
            got = inputs["df_" + name]
            pd.testing.assert_frame_equal(got, want)
            for c in want.columns:
                if want[c].dtype == object:
                    for a, b in zip(got[c], want[c]):
                        assert type(a) is type(b) and (a == b or a is b), (name, c, a, b)
        return {"checked": len(frames)}


def make_frames():
    utc, none = datetime.timezone.utc, None
    stamp = pd.Timestamp("2026-01-02T03:04:05.000006")
    typed = pd.DataFrame(
        {
            "i8": np.array([-128, 127, 0], "int8"),
            "i16": np.array([-(1 << 15), (1 << 15) - 1, 0], "int16"),
            "i32": np.array([-(1 << 31), (1 << 31) - 1, 0], "int32"),
            "i64": np.array([-(1 << 63), (1 << 63) - 1, 0], "int64"),
            "u8": np.array([255, 0, 1], "uint8"),
            "u16": np.array([65535, 0, 1], "uint16"),
            "u32": np.array([(1 << 32) - 1, 0, 1], "uint32"),
            "u64": np.array([(1 << 64) - 1, 0, 1], "uint64"),
            "f16": np.array([1.5, np.nan, 0], "float16"),
            "f32": np.array([1.5, np.nan, np.inf], "float32"),
            "f64": np.array([0.1, np.nan, -np.inf]),
            "bool": [True, False, True],
            "s": pd.array(["a", "", "\u00e9\u4e2d\U0001f600"], dtype="string"),
            "Int8": pd.array([1, None, -1], dtype="Int8"),
            "Int64": pd.array([(1 << 63) - 1, None, -(1 << 63)], dtype="Int64"),
            "UInt64": pd.array([(1 << 64) - 1, None, 0], dtype="UInt64"),
            "Float32": pd.array([1.5, None, 0], dtype="Float32"),
            "Float64": pd.array([0.1, None, 0], dtype="Float64"),
            "boolean": pd.array([True, None, False], dtype="boolean"),
            "string": pd.array(["x", None, ""], dtype="string"),
            "arrow": pd.array([1, None, 3], dtype="int64[pyarrow]"),
            "arrow_list": pd.array([[1], None, []], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
            "cat": pd.Categorical(["a", None, "b"], categories=["b", "a", "unused"]),
            "ordered": pd.Categorical(["lo", "hi", "lo"], categories=["lo", "hi"], ordered=True),
            "cat_int": pd.Categorical([3, 1, 3]),
            "cat_time": pd.Categorical([stamp, none, stamp]),
            "ns": pd.array([stamp, none, stamp + pd.Timedelta(1)], dtype="datetime64[ns]"),
            "tz": pd.Series([stamp, none, stamp]).dt.tz_localize("Europe/Prague"),
            "utc": pd.Series([stamp, none, stamp]).dt.tz_localize("UTC"),
            "delta": pd.array([pd.Timedelta(1), none, pd.Timedelta(days=-3)], dtype="timedelta64[ns]"),
            "period": pd.array(["2026-01", None, "2026-03"], dtype="period[M]"),
            "interval": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3]),
        }
    )
    objects = pd.DataFrame(
        {
            "int": [1, None, 1 << 62],
            "whole": [1, 2, 3],
            "float": [1.5, None, 2.0],
            "bool": [True, None, False],
            "text": ["a", None, "\u00e9"],
            "bytes": [b"\0\xff", None, b""],
            "date": [datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)],
            "time": [datetime.time(1, 2, 3, 4), None, datetime.time()],
            "datetime": [datetime.datetime(1, 1, 1), None, datetime.datetime(9999, 12, 31, 23, 59, 59, 999999)],
            "decimal": [decimal.Decimal("1.10"), None, decimal.Decimal("-99999999999999999999.99")],
            "list": [[1, 2], None, []],
            "texts": [["a", None], None, []],
            "dict": [{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": []}],
            "nothing": [None, None, None],
        },
        dtype=object,
    )
    frames = {
        "typed": typed,
        "objects": objects,
        "empty": typed.iloc[:0],
        "numbers": pd.DataFrame([[1, 2]], columns=[0, 1]),
        "levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])),
        "none": pd.DataFrame(columns=pd.Index([], dtype=object)),
    }
    if pd.__version__ >= "2":
        frames["units"] = pd.DataFrame({u: pd.array([stamp.floor("s"), none], dtype="datetime64[%s]" % u) for u in ("s", "ms", "us")})
        frames["far"] = pd.DataFrame({"s": np.array(["0001-01-01", "9999-12-31"], "datetime64[s]"), "us": np.array(["0001-01-01", "9999-12-31"], "datetime64[us]")})
    if pd.__version__ >= "3":
        frames["text"] = pd.DataFrame({"s": ["a", None, ""]})
    return frames
