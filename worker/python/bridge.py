"""Runs drivers: the part of worker/python that is in Python.

The worker starts this file with a pipe to read from as descriptor 3 and one to
write to as descriptor 4. Over both go frames: 4 bytes with a length, big-endian,
and so many bytes of JSON. It is asked for one step after the other, and answers
each with "result" or "error" after any number of "metric", "event" and "log".
Standard output and error belong to the drivers.

Tables are files, each an Arrow IPC stream, which the reader maps into memory.
A table may be cut into several files by rows, so that they are written side by
side.

Python 3.9 or later. pandas and pyarrow are imported when a step needs them.
"""

import ctypes
import datetime
import decimal
import faulthandler
import fcntl
import gc
import importlib
import importlib.util
import io
import json
import logging
import math
import os
import pathlib
import queue
import signal
import struct
import sys
import tempfile
import threading
import traceback

REQUESTS, ANSWERS = 3, 4

MAX_ANSWER = 60 << 20  # bytes of a frame; the worker refuses more than 64 MiB
MAX_TEXT = 16 << 20  # characters of a message or traceback. What is longer is left out: half a secret would not be known as one
BATCH_BYTES = 32 << 20  # of a record batch, about
PART_BYTES = 32 << 20  # of a file, at least, where a table is cut
MAX_PARTS = 4


class StepError(Exception):
    """A failure that the bridge finds, in the name of an exception of Python."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Channel:
    """The pipe to the worker. Drivers may use it from any thread."""

    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.Lock()
        self.forks = None  # locked by one process at a time, once there are several
        if hasattr(os, "register_at_fork"):  # multiprocessing forks, and its workers log, too
            os.register_at_fork(before=self.fork, after_in_parent=self.lock.release, after_in_child=self.lock.release)

    def fork(self):
        self.lock.acquire()  # no process begins in the middle of a frame
        if self.forks is None:
            try:
                self.forks = tempfile.TemporaryFile()
            except OSError:
                pass  # small frames still do not mix

    def send(self, message):
        body = json.dumps(message, allow_nan=False).encode("ascii")
        if len(body) > MAX_ANSWER:
            raise StepError("ValueError", "a %s of %d bytes is too large; the most is %d" % (message["type"], len(body), MAX_ANSWER))
        frame = memoryview(struct.pack(">I", len(body)) + body)
        with self.lock:
            if self.forks is not None:
                fcntl.lockf(self.forks, fcntl.LOCK_EX)
            try:
                while frame:
                    frame = frame[os.write(self.fd, frame) :]
            finally:
                if self.forks is not None:
                    fcntl.lockf(self.forks, fcntl.LOCK_UN)


class Context:
    """What a driver gets as ctx."""

    def __init__(self, channel, request):
        self._channel = channel
        self._seq = request["seq"]
        self.step_id = request["step_id"]
        self.session_id = request.get("session_id") or None
        self.traceparent = request.get("traceparent") or None
        self.base_path = pathlib.Path(request["base_path"])
        self.artifacts_dir = pathlib.Path(request["artifacts_dir"])
        self.output_dir = self.artifacts_dir

    def log_metric(self, name, value, unit=None, tags=None, **more):
        """Report a number. The step's id is its only tag: others are dropped."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            try:
                shown = "%.100r" % (value,)
            except Exception:  # an integer of very many digits, as one
                shown = class_name(type(value))
            self.log("metric %r is no finite number and is left out: %s" % (name, shown), "warning")
            return
        self._send("metric", name=str(name), value=number, unit=str(unit or ""))

    def log_event(self, *args, **fields):
        """Report what has happened: a name, then fields, as a dict or as keywords."""
        args = list(args)
        if not args:
            for key in ("event_name", "event", "name"):
                if key in fields:
                    args.append(fields.pop(key))
                    break
            else:
                raise TypeError("log_event() needs the name of the event")
        data = {}
        for extra in args[1:]:
            data.update(extra if isinstance(extra, dict) else {"data": extra})
        data.update(fields)
        self._send("event", name=str(args[0]), fields=plain(data))

    def log(self, message, level="info", **fields):
        """Report a message, as a logger of the module logging would."""
        self._send("log", level=str(level).upper(), logger="", message=str(message), fields=plain(fields))

    def _send(self, kind, **message):
        message.update(type=kind, seq=self._seq)
        self._channel.send(message)


class LogHandler(logging.Handler):
    """Takes log records to the worker."""

    def __init__(self, channel):
        super().__init__()
        self.channel = channel
        self.seq = 0

    def emit(self, record):
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
            self.channel.send({"type": "log", "seq": self.seq, "level": record.levelname, "logger": record.name, "message": bounded(text), "fields": {}})
        except Exception:
            self.handleError(record)


def bounded(text):
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate is no JSON for everyone
    return text if len(text) <= MAX_TEXT else "(a text of %d characters is left out)" % len(text)


def plain(value, strict=False, where="value", depth=0):
    """Return value as JSON has it. NaN and infinities become null. What JSON does
    not know becomes text; if strict, only where text is as good."""
    if value is None or isinstance(value, (bool, int)) and type(value) in (bool, int):
        return value
    if isinstance(value, str):
        return bounded(str(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth > 100:
        raise StepError("ValueError", "%s is nested more than 100 levels deep" % where)
    if isinstance(value, dict):
        return {str(k): plain(v, strict, "%s[%r]" % (where, k), depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, strict, "%s[%d]" % (where, i), depth + 1) for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [plain(v, strict, where, depth + 1) for v in sorted(value, key=repr)]
    if isinstance(value, (datetime.date, datetime.time)):  # pandas.Timestamp is one
        return None if value != value else value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, pathlib.PurePath)):
        return str(value)
    if isinstance(value, int):  # an enum, say
        return int(value)
    module = type(value).__module__
    if module == "numpy" or module.startswith("numpy."):
        if hasattr(value, "tolist"):
            # A scalar's value, or lists. What tolist leaves as it is, is text.
            listed = value.tolist()
            return plain(listed, strict, where, depth + 1) if type(listed) is not type(value) else str(value)
    if strict:
        raise StepError("TypeError", "%s is a %s; a result is a table or what JSON can hold" % (where, class_name(type(value))))
    return bounded(str(value))


def class_name(cls):
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else cls.__module__ + "." + cls.__qualname__


# Drivers


class Sources:
    """The directories that drivers are imported from, and all else that a step
    may change and the next one must not see."""

    def __init__(self):
        self.objects = os.environ, sys.path  # a driver may put others in their place
        self.environ = dict(os.environ)
        self.path = list(sys.path)
        self.sources = []

    def enter(self, request):
        os.environ, sys.path = self.objects
        os.chdir(request["cwd"])
        environ = dict(self.environ)
        environ.update(request["env"])
        for name in set(os.environ) - set(environ):
            del os.environ[name]
        for name, value in environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if request["sources"] != self.sources:
            self.forget()
            self.sources = request["sources"]
        sys.path[:] = self.sources + self.path
        importlib.invalidate_caches()

    def forget(self):
        """Drop the modules of the last sources: the next ones may have others by
        the same names."""
        if not self.sources:
            return
        sources = [os.path.join(os.path.realpath(s), "") for s in self.sources]
        installed = [os.path.join(os.path.realpath(s), "") for s in self.path if s]
        for name, module in list(sys.modules.items()):
            if name == "__main__":
                continue
            file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", None) or []), None)
            if not file:
                continue
            # What is installed below a source, as in its .venv, is not the source's.
            owner = max((s for s in sources + installed if os.path.realpath(file).startswith(s)), key=len, default="")
            if owner in sources:
                del sys.modules[name]


def load_driver(request):
    name, module_name, attribute = request["driver"], request["module"], request["class"]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not (module_name + ".").startswith(e.name + "."):
            raise  # the module is there, and misses another
        looked = ", ".join(request["sources"]) or "no source directories"
        raise StepError("ModuleNotFoundError", "driver %r: there is no module %r: looked in %s, and in what %s has installed" % (name, module_name, looked, sys.executable)) from None
    cls = module
    try:
        for part in attribute.split("."):
            cls = getattr(cls, part)
    except AttributeError:
        there = sorted(n for n, v in vars(module).items() if isinstance(v, type) and not n.startswith("_"))
        raise StepError("AttributeError", "driver %r: module %r (%s) has no class %r; it has %s" % (name, module_name, getattr(module, "__file__", None), attribute, ", ".join(there) or "no classes")) from None
    if not callable(cls):
        raise StepError("TypeError", "driver %r: %s.%s is a %s, not a class" % (name, module_name, attribute, class_name(type(cls))))
    driver = cls()
    if not callable(getattr(driver, "run", None)):
        raise StepError("AttributeError", "driver %r: class %s.%s has no method run(step_id, config, inputs, ctx)" % (name, module_name, attribute))
    return driver


# Tables


def need(module):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module.partition(".")[0]:
            raise
        raise StepError("ModuleNotFoundError", "%s has no %s: drivers in Python take pandas and pyarrow" % (sys.executable, e.name)) from None


def read_inputs(request):
    """Return the DataFrames. One table under two names is one DataFrame."""
    frames, inputs = {}, {}
    for name, files in request["inputs"].items():
        key = tuple(files)
        if key not in frames:
            frames[key] = to_frame(read_table(files))
        inputs[name] = frames[key]
    return inputs


def read_table(files):
    pa = need("pyarrow")
    parts = [pa.ipc.open_stream(pa.memory_map(f)).read_all() for f in files]
    table = parts[0] if len(parts) == 1 else pa.concat_tables(parts)
    try:
        return table.unify_dictionaries()
    except pa.ArrowNotImplementedError:  # of nested values
        return table


def to_frame(table):
    """Return table as a DataFrame whose values are those of the table, and may
    be changed in place."""
    pa, pd = need("pyarrow"), need("pandas")
    declared = declared_types(table.schema)
    special = {}
    for i, field in enumerate(table.schema):
        column = table.column(i)
        series = special_series(pd, pa, column, declared.get(field.name))
        if series is not None:
            special[i] = series
            table = table.set_column(i, pa.field(field.name, pa.null()), pa.nulls(len(table)))
    table = redeclared(table, declared)
    try:
        frame = bulk(pa, table)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # One column is the matter: it is not said which.
        for i, field in enumerate(table.schema):
            if i not in special:
                special[i] = any_series(pd, pa, table.column(i), field)
                table = table.set_column(i, pa.field(field.name, pa.null()), pa.nulls(len(table)))
        frame = bulk(pa, table)
    for i, series in special.items():
        series.index = frame.index
        replace_column(frame, i, series)
    return frame


def replace_column(frame, i, series):
    if hasattr(frame, "isetitem"):  # of pandas 1.5
        frame.isetitem(i, series)
    else:
        frame[frame.columns[i]] = series


def bulk(pa, table):
    for i, field in enumerate(table.schema):
        column = table.column(i)
        if len(table) and column.num_chunks == 1:
            # A column in one piece may not be copied, and then it could not be
            # changed in place, which drivers do.
            chunk = column.chunk(0)
            table = table.set_column(i, field, pa.chunked_array([chunk.slice(0, 1), chunk.slice(1)], field.type))
    # A block a column spares half of the copies. With very many columns pandas is
    # better off without, and with few rows it does not matter.
    split = len(table) > 10000 and table.num_columns <= 50
    return table.to_pandas(split_blocks=split, self_destruct=split)


def declared_types(schema):
    """Return the dtypes that the columns had in the DataFrame they come from, if
    they come from one."""
    try:
        meta = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        return {c.get("field_name") or c["name"]: str(c["numpy_type"]) for c in meta.get("columns", ())}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def redeclared(table, declared):
    """Take dtypes of Arrow out of what is said of the columns: their names are not
    always understood, and special_series has seen to them."""
    if not any(is_arrow_dtype(d) for d in declared.values()):
        return table
    meta = json.loads(table.schema.metadata[b"pandas"])
    for column in meta["columns"]:
        if is_arrow_dtype(column["numpy_type"]):
            column["numpy_type"] = "object"
    return table.replace_schema_metadata({**table.schema.metadata, b"pandas": json.dumps(meta).encode()})


def is_arrow_dtype(name):
    return name.endswith("[pyarrow]") and not name.startswith("string")


def special_series(pd, pa, column, declared):
    """Return what to_pandas would change; None where it is right."""
    t, types = column.type, pa.types
    if isinstance(t, pa.BaseExtensionType):
        return None
    if declared and is_arrow_dtype(declared):
        return pd.Series(pd.ArrowDtype(t).__from_arrow__(column))
    if declared in (None, "object"):
        if nested(pa, t) or declared and (types.is_integer(t) or types.is_floating(t) or types.is_boolean(t) or types.is_timestamp(t) or types.is_duration(t)):
            return pd.Series(column.to_pylist(), dtype=object)
        if declared and (types.is_string(t) or types.is_large_string(t)):
            return pd.Series(column.to_numpy(), dtype=object)  # pandas 3 would make them its own strings
    if types.is_integer(t) and column.null_count and t.bit_width == 64 and not (declared or "").startswith(("Int", "UInt")):
        pc = need("pyarrow.compute")
        low, high = (s.as_py() for s in pc.min_max(column).values())
        if low is not None and (low < -(1 << 53) or high > 1 << 53):
            # They would become floats, and not be the same any more.
            dtype = pd.Int64Dtype() if types.is_signed_integer(t) else pd.UInt64Dtype()
            return pd.Series(dtype.__from_arrow__(column))
    return None


def nested(pa, t):
    return pa.types.is_nested(t) and not pa.types.is_dictionary(t)


def any_series(pd, pa, column, field):
    """Return a column of any type."""
    t = column.type
    if pa.types.is_dictionary(t):
        try:
            return bulk(pa, pa.table([column], [field.name])).iloc[:, 0]
        except (pa.ArrowException, TypeError, ValueError):
            # Its values are no categories: some are null, or the same.
            column = column.cast(t.value_type)
    if hasattr(pa.types, "is_run_end_encoded") and pa.types.is_run_end_encoded(column.type):
        column = need("pyarrow.compute").run_end_decode(column)
    try:
        return bulk(pa, pa.table([column], [field.name])).iloc[:, 0]
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pd.Series(column.to_pylist(), dtype=object)


def take_result(result, prefix):
    """Return a step's outputs, written to files, and what else it has returned."""
    if result is None:
        return [], {}
    if not isinstance(result, dict):
        raise StepError("TypeError", 'run() has returned a %s; it must return a dict, as {"df": frame}, or None' % class_name(type(result)))
    outputs, values = [], {}
    for key, value in result.items():
        if not isinstance(key, str):
            raise StepError("TypeError", "run() has returned the key %r; keys are text" % (key,))
        source = as_arrow(key, value)
        if source is None and key == "df" and value is not None:
            # It is what other steps read: they would miss it, and not this one.
            raise StepError("TypeError", 'run() has returned a %s as "df"; it must be a table, as a pandas DataFrame' % class_name(type(value)))
        if source is None:
            values[key] = plain(value, strict=True, where="result %r" % key)
            continue
        try:
            files, rows = write_table(source, "%s%d-" % (prefix, len(outputs)))
        except OSError as e:
            raise StepError("OSError", "output %r: %s" % (key, e)) from None
        outputs.append({"key": key, "files": files, "rows": rows})
    return outputs, values


def as_arrow(key, value):
    """Return a Table or a RecordBatchReader for what is a table, else None."""
    # Who has not imported them has no tables of theirs.
    pd, pa = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pd is not None and isinstance(value, pd.Series):
        raise StepError("TypeError", "result %r is a Series; use its to_frame()" % key)
    if pd is not None and isinstance(value, pd.DataFrame):
        return from_frame(key, value)
    if pa is not None and isinstance(value, (pa.Table, pa.RecordBatchReader)):
        return value
    if pa is not None and isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    if hasattr(value, "__arrow_c_stream__") and not isinstance(value, type):
        pa = need("pyarrow")
        try:
            if hasattr(pa.RecordBatchReader, "from_stream"):
                return pa.RecordBatchReader.from_stream(value).read_all()
            return pa.table(value)
        except (pa.ArrowException, TypeError, ValueError) as e:
            raise StepError("TypeError", "output %r: a %s cannot be read as a table: %s" % (key, class_name(type(value)), e)) from None
    return None


def from_frame(key, frame):
    pa = need("pyarrow")
    if not frame.columns.is_unique:
        twice = sorted({str(c) for c in frame.columns[frame.columns.duplicated()]})
        raise StepError("ValueError", "output %r: more than one column is called %s" % (key, ", ".join(twice)))
    # Without an index of its own, but not by preserve_index: that would lose what
    # kinds of names the columns have.
    frame = frame.copy(deep=False)
    pd = need("pandas")
    frame.index = pd.RangeIndex(len(frame))
    for i, dtype in enumerate(frame.dtypes):
        if isinstance(dtype, pd.CategoricalDtype) and isinstance(dtype.categories.dtype, (pd.IntervalDtype, pd.PeriodDtype)):
            # Arrow would lose what they are: pandas.cut makes such ones.
            replace_column(frame, i, frame.iloc[:, i].astype(dtype.categories.dtype))
    try:
        table = pa.Table.from_pandas(frame)
        meta = json.loads(table.schema.metadata[b"pandas"])
        meta["index_columns"] = []  # its length may change on the way
        return table.replace_schema_metadata({**table.schema.metadata, b"pandas": json.dumps(meta).encode()})
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
        where, why = blame(pa, frame) or ("", e)
        raise StepError("TypeError", "output %r%s: %s" % (key, where, "; ".join(map(str, why.args)))) from None


def blame(pa, frame):
    """Return the first column that cannot be converted, and why; None if it is not one alone."""
    for name, column in frame.items():
        try:
            pa.array(column, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            return ", column %r" % (name,), e
    return None


def writable(pa, table):
    """Return table without what the worker cannot take."""
    views = [t for t in (getattr(pa, "string_view", None), getattr(pa, "binary_view", None)) if t]
    if not views:
        return table
    text, binary = pa.string_view(), pa.binary_view()
    for i, field in enumerate(table.schema):
        t = field.type
        if pa.types.is_dictionary(t) and t.value_type in (text, binary):
            large = pa.large_string() if t.value_type == text else pa.large_binary()
            chunks = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(large), ordered=t.ordered) for c in table.column(i).chunks]
            column = pa.chunked_array(chunks, pa.dictionary(t.index_type, large, t.ordered))
        elif t in (text, binary):
            column = table.column(i).cast(pa.large_string() if t == text else pa.large_binary())
        else:
            continue
        table = table.set_column(i, pa.field(field.name, column.type, field.nullable, field.metadata), column)
    return table


def batches(table):
    """Yield table's batches, each of about BATCH_BYTES."""
    rows = len(table)
    if rows == 0:
        pa = need("pyarrow")
        # An empty batch takes categories along, a schema alone does not.
        arrays = [c.chunk(0) if c.num_chunks else pa.array([], c.type) if not isinstance(c.type, pa.BaseExtensionType) else c.combine_chunks() for c in table.columns]
        if all(isinstance(a, pa.Array) for a in arrays):
            yield pa.RecordBatch.from_arrays(arrays, schema=table.schema)
        return
    size = max(1, int(rows * BATCH_BYTES // max(1, table.nbytes)))
    for batch in table.to_batches(max_chunksize=size):
        waiting = [batch]
        while waiting:
            batch = waiting.pop()
            if batch.num_rows > 1 and batch.nbytes > 4 * BATCH_BYTES:  # its rows are larger than most
                half = batch.num_rows // 2
                waiting += [batch.slice(half), batch.slice(0, half)]
            else:
                yield batch


def write_table(source, prefix):
    """Write a Table or what a RecordBatchReader yields. Return the files' names and the number of rows."""
    pa = need("pyarrow")
    if isinstance(source, pa.RecordBatchReader):
        schema = writable(pa, source.schema.empty_table()).schema
        file, rows = prefix + "0", 0
        with pa.OSFile(file, "wb") as f, pa.ipc.new_stream(f, schema) as w:
            for batch in source:
                for b in batches(writable(pa, pa.Table.from_batches([batch]))):
                    w.write_batch(b)
                rows += batch.num_rows
        return [os.path.basename(file)], rows

    table = writable(pa, source)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = max(1, min(MAX_PARTS, cpus, table.nbytes // PART_BYTES, len(table)))
    step = -(-len(table) // parts)
    files = [prefix + str(i) for i in range(parts)]
    errors = []

    def write(i):
        try:
            with pa.OSFile(files[i], "wb") as f, pa.ipc.new_stream(f, table.schema) as w:
                for batch in batches(table.slice(i * step, step) if parts > 1 else table):
                    w.write_batch(batch)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=write, args=(i,), daemon=True) for i in range(1, parts)]
    for t in threads:
        t.start()
    write(0)
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return [os.path.basename(f) for f in files], len(table)


# Steps


def describe(e):
    """Return the error that tells of an exception, whatever its class is like."""
    try:
        return told_error(e)
    except BaseException as broken:
        return {"type": "error", "error_type": "Exception", "message": "(the driver's exception cannot be read: %s)" % bounded(type(broken).__name__), "traceback": ""}


def told_error(e):
    if isinstance(e, StepError):
        return {"type": "error", "error_type": e.kind, "message": bounded(str(e)), "traceback": ""}
    if isinstance(e, SystemExit):
        message = "the driver has called sys.exit(%s)" % ("" if e.code is None else repr(e.code))
    else:
        try:
            message = str(e)
        except Exception as broken:
            message = "(its message cannot be read: %s)" % type(broken).__name__
    kind = class_name(type(e))
    try:
        told = traceback.TracebackException(type(e), e, e.__traceback__)
        only_driver(told, set())
        text = "".join(told.format())
    except Exception as broken:  # an exception with a __str__ that raises, as one
        text = "(its traceback cannot be read: %s)" % type(broken).__name__
    return {"type": "error", "error_type": bounded(kind), "message": bounded(message or kind), "traceback": bounded(text)}


def only_driver(told, seen):
    """Take the bridge's frames, and those of imports, out of a traceback."""
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    told.stack[:] = [f for f in told.stack if f.filename not in (__file__, importlib.__file__) and not f.filename.startswith("<frozen importlib")]
    only_driver(told.__cause__, seen)
    only_driver(told.__context__, seen)
    for e in getattr(told, "exceptions", None) or ():
        only_driver(e, seen)


class Prints:
    """What is printed, and its ends: after a step a marker goes down both
    streams, behind all that the step has printed."""

    def __init__(self):
        # A driver may close the streams, or put others in their place.
        self.fds = [os.dup(1), os.dup(2)]
        self.libc = None
        try:
            self.libc = ctypes.CDLL(None)
        except (OSError, TypeError):
            pass
        self.streams = sys.stdout, sys.stderr
        for stream in self.streams:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        faulthandler.enable(self.fds[1])

    def enter(self):
        """Undo what a driver has done to the streams."""
        for i, fd in enumerate(self.fds):
            os.set_blocking(fd, True)
            os.dup2(fd, i + 1)
        self.streams = tuple(
            stream if stream is not None and not stream.closed
            else io.TextIOWrapper(open(i + 1, "wb", 0, closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True)
            for i, stream in enumerate(self.streams)
        )
        sys.stdout, sys.stderr = self.streams

    def end(self, marker):
        for stream in (sys.stdout, sys.stderr) + self.streams:
            try:
                stream.flush()
            except Exception:
                pass  # it is the driver's own, or closed
        if self.libc is not None:
            self.libc.fflush(None)  # what C libraries have printed
        for fd in self.fds:
            os.set_blocking(fd, True)  # some programs change that, for all who have the pipe
            os.write(fd, marker)

    def trim(self):
        if hasattr(self.libc, "malloc_trim"):
            self.libc.malloc_trim(0)


class Bridge:
    def __init__(self):
        for fd in (REQUESTS, ANSWERS):
            os.set_inheritable(fd, False)  # not for what drivers start
        self.channel = Channel(ANSWERS)
        self.requests = queue.SimpleQueue()
        self.busy = False
        self.sources = Sources()
        self.prints = Prints()
        self.handler = LogHandler(self.channel)

    def serve(self):
        threading.Thread(target=self.read, name="osiris-requests", daemon=True).start()
        self.channel.send({"type": "ready", "seq": 0, "version": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable})
        while True:
            request = self.requests.get()
            if request is None:
                return
            pid = os.getpid()
            answer = self.step(request)
            if os.getpid() != pid:
                # The driver has forked, and here is the other one: it has no say.
                sys.stderr.write("a process that the driver has forked has come back from run(), and is ended\n")
                os._exit(1)
            self.prints.end(bytes.fromhex(request["marker"]))
            answer["seq"] = request["seq"]
            self.busy = False
            try:
                self.channel.send(answer)
            except StepError as e:  # it is too large
                self.channel.send({**describe(e), "seq": request["seq"]})
            # The step's memory goes back while the worker is busy with its outputs.
            request = answer = None
            gc.collect()
            pa = sys.modules.get("pyarrow")
            if pa is not None and hasattr(pa, "default_memory_pool"):
                pa.default_memory_pool().release_unused()
            self.prints.trim()

    def read(self):
        with os.fdopen(REQUESTS, "rb", closefd=False) as f:
            while True:
                head = f.read(4)
                body = f.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
                if not body:
                    break
                self.busy = True
                self.requests.put(json.loads(body))
        # The worker has closed its end, or is no more.
        if self.busy:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        self.requests.put(None)

    def step(self, request):
        try:
            self.prints.enter()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0)  # of the last step, which is over
            logging.disable(logging.NOTSET)
            for logger in list(logging.root.manager.loggerDict.values()):
                if isinstance(logger, logging.Logger):
                    logger.disabled = False  # dictConfig disables all that there are
            root = logging.getLogger()
            root.disabled = False
            root.filters[:] = []
            root.handlers[:] = [self.handler]
            root.setLevel(logging.INFO)
            self.handler.seq = request["seq"]
            self.sources.enter(request)
            driver = load_driver(request)
            result = driver.run(step_id=request["step_id"], config=request["config"], inputs=read_inputs(request), ctx=Context(self.channel, request))
            outputs, values = take_result(result, request["output"])
            answer = {"type": "result", "outputs": outputs, "values": values}
            if values and len(json.dumps(values)) > MAX_ANSWER // 2:
                raise StepError("ValueError", "what run() has returned beside tables is more than %d bytes; write it to ctx.artifacts_dir" % (MAX_ANSWER // 2))
            return answer
        except BaseException as e:  # also SystemExit and KeyboardInterrupt: the step has failed, whatever it was
            return describe(e)


def main():
    if sys.version_info < (3, 9):
        sys.exit("drivers take Python 3.9 or later; %s is %d.%d" % ((sys.executable,) + sys.version_info[:2]))
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != here]
    try:
        Bridge().serve()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
