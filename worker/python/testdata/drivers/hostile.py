"""A driver that does to its process what drivers should not."""

import json
import logging
import multiprocessing
import os
import signal
import struct
import sys
import time

import logging.config


def log_much(i):
    for n in range(20):
        logging.getLogger("hostile").info("%d %d %s", i, n, "x" * 50_000)


class Unreadable(Exception):
    def __str__(self):
        raise SystemExit(1)


class Hostile:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        self.ctx, self.config = ctx, config
        return getattr(self, config["how"])()

    # A step of which the next one must not see anything.

    def closes_streams(self):
        sys.stdout.close()
        sys.stderr = None
        os.close(2)

    def redirects(self):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def replaces(self):
        os.environ = None
        sys.path = None

    def silences(self):
        logging.getLogger("hostile")
        logging.config.dictConfig({"version": 1})
        logging.disable(logging.CRITICAL)
        logging.getLogger().addFilter(lambda record: False)

    def sets_alarm(self):
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def forks(self):
        self.ctx.log_metric("pid", os.fork() or os.getpid())

    def next(self):
        time.sleep(0.2)
        print("printed")
        logging.getLogger("hostile").info("logged")
        return {"path": os.environ["PATH"] != ""}

    # What fails.

    def raises_unreadable(self):
        raise Unreadable

    def raises_without_module(self):
        Unreadable.__module__ = None
        raise Unreadable

    def raises_much(self):
        raise ValueError("\u00e9" * 12_000_000)

    def leaves_fifo(self):
        return self.leaves(os.mkfifo)

    def leaves_link(self):
        return self.leaves(lambda name: os.symlink(os.path.realpath(__file__), name))

    def leaves(self, what):
        import pandas
        import pyarrow

        def open_file(name, mode):
            what(name)
            return real(name + "-else", mode)

        real, pyarrow.OSFile = pyarrow.OSFile, open_file
        return {"df": pandas.DataFrame({"a": [1]})}

    # What ends.

    def execs(self):
        os.execv("/bin/sleep", ["sleep", "60"])

    def closes_answers(self):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 4)

    # What does not end before it is stopped.

    def answers_by_itself(self):
        frame = json.dumps({"type": "result", "seq": 1, "outputs": [], "values": {}}).encode()
        self.ctx.log_metric("pid", os.getpid())
        os.write(4, struct.pack(">I", len(frame)) + frame)
        time.sleep(60)

    def leaves_group(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setpgid(0, os.getpgid(os.getppid()))
        self.ctx.log_metric("pid", os.getpid())
        time.sleep(60)

    # What works.

    def forked_workers_log(self):
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=log_much, args=(i,)) for i in range(3)]
        for w in workers:
            w.start()
        log_much(3)
        for w in workers:
            w.join()
        return {"codes": [w.exitcode for w in workers]}

    def returns_secret(self):
        return {"values": {"key": self.config["secret"], self.config["secret"]: 1}}

    def odd_metrics(self):
        self.ctx.log_metric("huge", 10**5000)
