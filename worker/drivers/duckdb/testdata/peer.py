"""DuckDB's Python client as the peer of this package's benchmarks and tests.

  peer.py make DIR ROWS        writes the inputs of the benchmarks as Arrow files
  peer.py time DIR QUERY N     prints the seconds of each of N runs of QUERY over
                               them, from Arrow tables to an Arrow table
  peer.py values               prints what fetchdf makes of each query that standard
                               input has in a JSON list: names, and rows of values
"""

import json
import os
import sys
import time


def make(folder, rows):
    import numpy as np
    import pyarrow as pa

    r = np.random.default_rng(1)
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta, a somewhat longer text"])
    tables = {
        "df_users": {
            "user_id": r.permutation(rows),
            "email": np.char.add(np.char.add("user", np.arange(rows).astype(str)), "@example.com"),
            "country": words[r.integers(0, 6, rows)],
            "created": np.datetime64("2024-01-01", "us") + r.integers(0, 10**12, rows),
        },
        "df_orders": {
            "order_id": np.arange(rows),
            "user_id": r.integers(0, rows, rows),
            "total": r.random(rows) * 1e5,
            "note": words[r.integers(0, 6, rows)],
        },
        "df_charges": {
            "charge_id": np.arange(rows),
            "order_id": r.permutation(rows),
            "amount": r.random(rows) * 1e5,
            "status": np.array(["succeeded", "failed"])[r.integers(0, 2, rows)],
        },
    }
    for name, columns in tables.items():
        table = pa.table({k: pa.array(v) for k, v in columns.items()})
        with pa.OSFile(os.path.join(folder, name + ".arrow"), "wb") as f:
            with pa.ipc.new_file(f, table.schema) as w:
                w.write_table(table, max_chunksize=10000)


def load(folder):
    import pyarrow as pa

    return {
        name.removesuffix(".arrow"): pa.ipc.open_file(pa.memory_map(os.path.join(folder, name))).read_all()
        for name in sorted(os.listdir(folder))
        if name.endswith(".arrow")
    }


def timed(folder, query, n):
    import duckdb

    tables = load(folder)
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        con = duckdb.connect(":memory:")
        for name, table in tables.items():
            con.register(name, table)
        rows = con.execute(query).fetch_arrow_table().num_rows
        con.close()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "rows": rows, "duckdb": duckdb.__version__}))


def value(v):
    """One form of a value, whatever pandas or numpy have made of it."""
    import datetime
    import numpy as np
    import pandas as pd

    if isinstance(v, np.ma.MaskedArray):
        return [None if m else value(x) for x, m in zip(v.data, np.ma.getmaskarray(v))]
    if isinstance(v, (list, np.ndarray)):
        return [value(x) for x in v]
    if isinstance(v, dict):
        return {str(k): value(x) for k, x in v.items()}
    if v is None or v is pd.NA or v is pd.NaT:
        return None
    if isinstance(v, (bool, np.bool_)):
        return bool(v)
    if isinstance(v, (int, float, np.number)):
        return None if v != v else "%.9g" % v
    if isinstance(v, (pd.Timestamp, pd.Timedelta)):
        return "%dns" % (int(v.asm8.astype("int64")) * {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[v.unit])
    if isinstance(v, datetime.time):
        return v.isoformat()
    if isinstance(v, (bytes, bytearray)):
        return bytes(v).hex()
    return str(v)


def values():
    import duckdb

    out = []
    for query in json.load(sys.stdin):
        df = duckdb.connect(":memory:").execute("SET TimeZone = 'UTC'; " + query).fetchdf()
        rows = [[value(df.iloc[i, j]) for j in range(df.shape[1])] for i in range(df.shape[0])]
        out.append({"names": list(df.columns), "rows": rows})
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "values":
        values()
    else:
        timed(sys.argv[2], sys.argv[3], int(sys.argv[4]))
