"""Writes Parquet files to the first directory given, and what they hold as Arrow
IPC; and the latter of those Parquet files that are in the second. Both in one
program, since its imports take long. Without them it exits with 77."""
import datetime as dt
import decimal
import glob
import os
import sys

try:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    sys.exit(77)

out = sys.argv[1]
n = 900


def every(values, typ):
    """The values and null, again and again, so that there are several pages."""
    return pa.array([(list(values) + [None])[i % (len(values) + 1)] for i in range(n)], typ)


D = decimal.Decimal
utc = dt.timezone.utc
columns = {
    "bool": every([True, False], pa.bool_()),
    "int8": every([-128, 127], pa.int8()),
    "int16": every([-(2**15), 2**15 - 1], pa.int16()),
    "int32": every([-(2**31), 2**31 - 1], pa.int32()),
    "int64": every([-(2**63), 2**63 - 1], pa.int64()),
    "uint8": every([0, 255], pa.uint8()),
    "uint16": every([0, 2**16 - 1], pa.uint16()),
    "uint32": every([0, 2**32 - 1], pa.uint32()),
    "uint64": every([0, 2**64 - 1], pa.uint64()),
    "half": every([np.float16(0.5), np.float16(-65504)], pa.float16()),
    "float": every([0.1, float("inf")], pa.float32()),
    "double": every([0.1, -1.7976931348623157e308, float("-inf"), 5e-324], pa.float64()),
    "text": every(["", "žluťoučký 🐎", "x" * 1000], pa.string()),
    "large_text": every(["", "long"], pa.large_string()),
    "binary": every([b"", b"\x00\xff"], pa.binary()),
    "fixed": every([b"\x00\x01\x02\x03"], pa.binary(4)),
    "decimal9": every([D("1234567.89"), D("-0.01")], pa.decimal128(9, 2)),
    "decimal38": every([D("9999999999999999999999999999.9999999999"), D("-0.0000000001")], pa.decimal128(38, 10)),
    "decimal76": every([D("9" * 70 + ".999999"), D("-0.000001")], pa.decimal256(76, 6)),
    "date": every([dt.date(1, 1, 1), dt.date(9999, 12, 31)], pa.date32()),
    "time_ms": every([dt.time(23, 59, 59, 999000)], pa.time32("ms")),
    "time_us": every([dt.time(23, 59, 59, 999999)], pa.time64("us")),
    "naive_ms": every([dt.datetime(2024, 2, 29, 12, 34, 56, 789000)], pa.timestamp("ms")),
    "naive_us": every([dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)], pa.timestamp("us")),
    "naive_ns": every([pd.Timestamp("2024-02-29 12:34:56.123456789")], pa.timestamp("ns")),
    "utc": every([dt.datetime(2024, 2, 29, tzinfo=utc)], pa.timestamp("us", "UTC")),
    "prague": every([dt.datetime(2024, 2, 29, tzinfo=utc)], pa.timestamp("us", "Europe/Prague")),
    "duration": every([dt.timedelta(days=-1, microseconds=1)], pa.duration("us")),
    "list": every([[], [1, None, 3]], pa.list_(pa.field("element", pa.int64()))),
    "list_of_lists": every([[], [[]], [["a"], None, ["b", None]]], pa.list_(pa.field("element", pa.list_(pa.field("element", pa.string()))))),
    "pairs": pa.array([[i, None] for i in range(n)], pa.list_(pa.field("element", pa.int64()), 2)),
    "struct": every([{"a": 1, "b": "x"}, {"a": None, "b": None}], pa.struct([("a", pa.int32()), ("b", pa.string())])),
    "structs": every([[{"a": 1.5}], [], [None]], pa.list_(pa.field("element", pa.struct([("a", pa.float64())])))),
    "map": every([[("k", 1), ("l", None)], []], pa.map_(pa.string(), pa.int64())),
    "dictionary": every(["low", "high"], pa.string()).dictionary_encode(),
    "null": pa.nulls(n),
}
table = pa.table(columns)


def save(name, table, **options):
    pq.write_table(table, os.path.join(out, name + ".parquet"), **options)
    with pa.ipc.new_stream(os.path.join(out, name + ".arrow"), table.schema) as w:
        w.write_table(table)


save("types", table)
save("groups", table, row_group_size=250, data_page_size=256, write_batch_size=50)
save("v1", table.drop_columns(["uint32", "naive_ns", "decimal76"]), version="2.4", data_page_version="1.0", use_dictionary=False)
save("v2", table, data_page_version="2.0", compression="zstd")
save("plain", table.select(["int64", "text", "struct"]), compression="none", write_statistics=False, store_schema=False)
save("gzip", table.select(["int64", "text", "map"]), compression="gzip")
save("brotli", table.select(["int64", "text"]), compression="brotli")
save("delta", table.select(["int64", "int32", "text"]).append_column("count", pa.array(range(n))), use_dictionary=False, data_page_size=1000, write_batch_size=100,
     column_encoding={"int64": "DELTA_BINARY_PACKED", "int32": "DELTA_BINARY_PACKED", "count": "DELTA_BINARY_PACKED", "text": "DELTA_LENGTH_BYTE_ARRAY"})
pq.write_table(table.select(["double"]), os.path.join(out, "split.parquet"), use_dictionary=False, column_encoding="BYTE_STREAM_SPLIT")
save("empty", table.slice(0, 0))
save("required", pa.table({"a": [1, 2, 3]}, schema=pa.schema([pa.field("a", pa.int64(), nullable=False)])))

# As pandas users have them.
frame = pd.DataFrame({
    "i": pd.array([1, None, 3], dtype="Int64"),
    "b": pd.array([True, None, False], dtype="boolean"),
    "f": [0.5, np.nan, -1.0],
    "s": ["a", None, "c"],
    "c": pd.Categorical(["x", None, "y"], categories=["y", "x", "z"]),
    "t": pd.to_datetime(["2024-01-15 10:00:00", None, "1969-12-31 00:00:00"]),
    "z": pd.to_datetime(["2024-01-15 10:00:00", None, "1969-12-31 00:00:00"]).tz_localize("America/New_York"),
    "d": pd.to_timedelta(["1 days", None, "-1 s"]),
    "o": [[1, 2], None, []],
})
frame.to_parquet(os.path.join(out, "pandas.parquet"))
kept = pq.read_table(os.path.join(out, "pandas.parquet"))
with pa.ipc.new_stream(os.path.join(out, "pandas.arrow"), kept.schema) as w:
    w.write_table(kept)
pd.DataFrame().to_parquet(os.path.join(out, "nothing.parquet"))

for name in glob.glob(os.path.join(sys.argv[2], "*.parquet")):
    table = pq.ParquetFile(name).read()
    with pa.ipc.new_stream(name.replace(".parquet", ".read"), table.schema) as w:
        w.write_table(table)
    # Python's times have no nanoseconds.
    frame = pd.read_parquet(name, columns=[c for c in table.column_names if c != "time ns"])
    assert len(frame) == len(table)
