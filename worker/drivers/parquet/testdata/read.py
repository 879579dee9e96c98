"""Reads the Parquet files of the directory given, and writes what they hold as Arrow IPC."""
import glob
import os
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

for name in glob.glob(os.path.join(sys.argv[1], "*.parquet")):
    table = pq.ParquetFile(name).read()
    with pa.ipc.new_stream(name.replace(".parquet", ".read"), table.schema) as w:
        w.write_table(table)
    # Python's times have no nanoseconds.
    frame = pd.read_parquet(name, columns=[c for c in table.column_names if c != "time ns"])
    assert len(frame) == len(table)
