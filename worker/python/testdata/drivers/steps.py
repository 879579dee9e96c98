"""Drivers for the tests."""

import ctypes
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import helper

logger = logging.getLogger(__name__)


class Answer:
    """Returns what the config says."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        return config.get("return")


class See:
    """Returns what a driver sees."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        return {
            "step_id": step_id,
            "config": config,
            "types": {k: type(v).__name__ for k, v in config.items()},
            "inputs": {k: type(v).__name__ for k, v in inputs.items()},
            "ctx": {k: [type(getattr(ctx, k)).__mro__[-2].__name__, str(getattr(ctx, k))] for k in ("step_id", "session_id", "base_path", "artifacts_dir", "output_dir")},
            "cwd": os.getcwd(),
            "env": os.environ.get("STEP_VARIABLE"),
            "traced": [ctx.traceparent, os.environ.get("TRACEPARENT")],
            "stdin": sys.stdin.read(),
            "pid": os.getpid(),
            "helper": helper.NAME,
        }


class Report:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        ctx.log_metric("rows_read", 5, tags={"step": step_id})
        ctx.log_metric("took", 1.5, unit="ms", more="x")
        ctx.log_metric("nothing", float("nan"))
        ctx.log_event("begun", table="t", n=1 << 60)
        ctx.log_event("failed", {"error": "no", "path": pathlib.Path("/x"), "bad": float("inf")})
        ctx.log("said", "error", code=7)
        logger.debug("not this")
        logger.info("first %d", 1)
        logger.warning("second")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("other").exception("third")
        return None


class Print:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("one")
        sys.stdout.write("half")
        sys.stderr.write("to stderr\n")
        libc = ctypes.CDLL(None)
        libc.printf(b"from C\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        print("\udcff \u00e9", end="")
        return {"n": config["n"], "bytes": os.write(1, b"z" * config["n"])}


class Tell:
    """Prints a secret, and dies of it."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("x" * config["before"] + config["secret"], "end")
        print(config["secret"], file=sys.stderr)
        os._exit(1)


class Close:
    """Takes its own streams away."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("before")
        sys.stdout.close()
        os.close(2)
        return None


class Raise:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        try:
            json.loads("{")
        except ValueError as e:
            raise helper.Refused("no: " + config["secret"]) from e


class Exit:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        sys.exit(config["code"])


class Silent:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        raise ValueError


class Unspeakable:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        class Broken(Exception):
            def __str__(self):
                raise RuntimeError("no")

        raise Broken()


class Deep:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        return self.run(step_id=step_id, config=config)


class Die:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        print("last words", file=sys.stderr)
        if config["how"] == "exit":
            os._exit(3)
        if config["how"] == "segfault":
            ctypes.string_at(0)
        if config["how"] == "protocol":
            os.write(4, b"\0\0\0\3abc")
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)


class Wait:
    """Waits to be stopped, and writes down what has become of it."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        if config["how"] == "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=None)
            ctx.log_metric("child", child.pid)
        if config["how"] in ("ignore", "stubborn"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if config["how"] == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            ctx.log_metric("pid", os.getpid())
            while config["how"] != "once":
                time.sleep(0.01)
        except KeyboardInterrupt:
            ctx.log_event("cleaned_up")
            if config["how"] == "swallow":
                return {}
            raise


class Leave:
    """Changes all that a process has."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        os.environ["STEP_VARIABLE"] = "left"
        os.environ["PATH"] = ""
        os.chdir("/")
        sys.path.insert(0, "/nowhere")
        logging.basicConfig(force=True, level=logging.ERROR)
        sys.stdout = open(os.devnull, "w")
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def late():
            time.sleep(0.05)
            ctx.log_metric("late", 1)
            os.write(1, b"late\n")

        threading.Thread(target=late, daemon=True).start()
        return {}


class Barrier:
    """Ends when as many steps run as the config says."""

    def run(self, *, step_id, config, inputs=None, ctx=None):
        directory = pathlib.Path(config["dir"])
        (directory / step_id).touch()
        while len(list(directory.iterdir())) < config["steps"]:
            time.sleep(0.005)
        return {"pid": os.getpid()}


class Argument:
    def __init__(self, needed):
        pass


class NoRun:
    pass


not_a_class = 7
