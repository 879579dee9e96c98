"""pandas as the peer of this package's benchmarks, called as the original drivers call it.

  peer.py IN OUT N    reads the file IN and writes OUT, N times each, and prints the seconds of each
"""

import json
import sys
import time

import pandas as pd

source, target, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
read, write = [], []
for _ in range(n):
    start = time.perf_counter()
    df = pd.read_csv(source, sep=",", encoding="utf-8", header=0, engine="c", skip_blank_lines=True, on_bad_lines="error")
    read.append(time.perf_counter() - start)
    start = time.perf_counter()
    df[sorted(df.columns)].to_csv(target, sep=",", encoding="utf-8", header=True, index=False, lineterminator="\n")
    write.append(time.perf_counter() - start)
print(json.dumps({"read": read, "write": write, "rows": len(df), "pandas": pd.__version__}))
