"""Reads queries as the original's mysql.extractor does: SQLAlchemy, PyMySQL,
pandas.read_sql. Takes a JSON object on stdin: host, port, user, password,
database, queries. Prints a JSON list with, for each query, its columns as
texts in "values", or the number of rows and the seconds it took where
"time" is set.
"""

import datetime
import decimal
import json
import sys
import time

import pandas as pd
import sqlalchemy


def text(v):
    if v is None or v is pd.NaT or (isinstance(v, float) and v != v):
        return None
    if isinstance(v, (bytes, bytearray)):
        return v.hex()
    if isinstance(v, bool):
        return str(v).lower()
    if isinstance(v, (pd.Timedelta, datetime.timedelta)):
        return str(v // datetime.timedelta(microseconds=1))
    if isinstance(v, (pd.Timestamp, datetime.datetime)):
        return v.strftime("%Y-%m-%d %H:%M:%S.%f").rjust(26, "0")
    if isinstance(v, datetime.date):
        return v.isoformat()
    if isinstance(v, (decimal.Decimal, float)):
        return repr(float(v))
    return str(v)


def main():
    request = json.load(sys.stdin)
    url = sqlalchemy.URL.create(
        "mysql+pymysql", request["user"], request["password"], request["host"], request["port"], request["database"]
    )
    engine = sqlalchemy.create_engine(url, connect_args={"init_command": "SET time_zone = '+00:00'"})
    answers = []
    for query in request["queries"]:
        begin = time.perf_counter()
        df = pd.read_sql(query, engine)
        seconds = time.perf_counter() - begin
        if request.get("time"):
            answers.append({"rows": len(df), "seconds": seconds})
        else:
            answers.append([[text(v) for v in df[name].tolist()] for name in df.columns])
    json.dump(answers, sys.stdout)


main()
