import logging
import os
import sys
import time
from pathlib import Path

import pandas as pd

logger = logging.getLogger(__name__)


class CsvExtractor:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        df = pd.read_csv(config["path"])
        ctx.log_metric("rows_read", len(df))
        return {"df": df}


class DuckDBProcessor:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        import duckdb

        con = duckdb.connect(":memory:")
        try:
            for name, table in (inputs or {}).items():
                if name.startswith("df_"):
                    con.register(name, table)
            df = con.execute(config["query"].strip()).fetchdf()
        finally:
            con.close()
        ctx.log_metric("rows_written", len(df))
        return {"df": df}


class CsvWriter:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        df = next(v for k, v in inputs.items() if k == "df" or k.startswith("df_"))
        path = Path(config["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        df[sorted(df.columns)].to_csv(path, index=False, lineterminator="\n")
        ctx.log_metric("rows_written", len(df))
        return {}


class Reporter:
    """Tells everything that can be told."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("printed by", step_id)
        print("the key is", config["resolved_connection"]["password"], file=sys.stderr)
        logger.warning("logged by %s", step_id)
        ctx.log_event("shop_opened", step=step_id, key=config["resolved_connection"]["password"])
        ctx.log_metric("customers", 3, unit="rows")
        (Path(ctx.output_dir) / "note.txt").write_text("a note\n")
        return {
            "df": pd.DataFrame({"pid": [os.getpid()], "cwd": [os.getcwd()]}),
            "more": pd.DataFrame({"n": [1, 2]}),
        }


class Failing:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        raise LookupError("no customer with the key " + config["resolved_connection"]["password"])


class Sleeping:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        ctx.log_event("asleep")
        time.sleep(600)


class Dying:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("the last words", flush=True)
        os._exit(3)


class MySQLExtractor:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        import sqlalchemy as sa

        conn = config["resolved_connection"]
        url = sa.URL.create(
            "mysql+pymysql", conn.get("user", "root"), conn.get("password", ""),
            conn.get("host", "localhost"), int(conn.get("port", 3306)), conn["database"],
        )
        engine = sa.create_engine(url)
        try:
            df = pd.read_sql_query(sa.text(config["query"]), engine)
        finally:
            engine.dispose()
        ctx.log_metric("rows_read", len(df))
        return {"df": df}
