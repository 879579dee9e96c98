"""Uses a server of E2B's API through E2B's own package for Python.

    sdk.py FEATURE,... [section...]

The environment says where the server is: E2B_API_KEY, E2B_API_URL and
E2B_SANDBOX_URL. The first argument says what there is beside the daemon's files
and commands of plain words:

    control  a control plane; without it E2B_DEBUG=true takes the daemon alone
    copies   snapshots and other copies of sandboxes
    shell    real processes
    templates  real processes in files of their own, to build templates from
    built    a template "from-go", which holds /opt/from-go, of 1 CPU

Every section that fails is printed with its traceback, and the exit code is 1.
"""

import asyncio
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

from e2b import (
    AsyncSandbox,
    AuthenticationException,
    BuildException,
    CommandExitException,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    Template,
    TimeoutException,
    wait_for_file,
)

RUN = uuid.uuid4().hex  # tells the sandboxes of this run from others
METADATA = {"run": RUN, "punctuation": "a&b=c+d%20e/f?g#h", "key & = + % ü": "ü 日本 \U0001f980"}
PATIENCE = 20  # seconds, until something counts as not happening
TEXT = "first line\nsecond line: ü 日本\n"
BINARY = bytes(range(256))


def equal(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


@contextlib.contextmanager
def raises(kind, *words):
    """Expects an exception of a type, with words in its text."""
    try:
        yield
    except kind as e:
        for word in words:
            assert word in str(e), f"{word!r} is not in {str(e)!r}"
    else:
        raise AssertionError(f"no {kind.__name__}")


def eventually(condition, what):
    """Waits until a condition holds, and returns its value."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def all_items(paginator):
    pages = []
    while paginator.has_next:
        pages.append(paginator.next_items())
    return pages


class Bench:
    """Makes sandboxes for the sections, and directories in them."""

    def __init__(self):
        self.made = []

    def create(self, **options):
        options.setdefault("timeout", 120)
        options.setdefault("metadata", METADATA)
        return self.keep(Sandbox.create(**options))

    def keep(self, sandbox):
        self.made.append(sandbox)
        return sandbox

    def close(self):
        for sandbox in self.made:
            sandbox.kill()

    @contextlib.contextmanager
    def directory(self, sandbox):
        name = f"/tmp/sdktest-{uuid.uuid4().hex}"
        sandbox.files.make_dir(name)
        try:
            yield name
        finally:
            sandbox.files.remove(name)


# ------------------------------------------------------------ control plane


def lifecycle(bench):
    before = datetime.now(timezone.utc)
    sandbox = bench.create(envs={"GREETING": "hello"}, timeout=120)
    assert sandbox.is_running()

    info = sandbox.get_info()
    equal(info.sandbox_id, sandbox.sandbox_id)
    equal(info.name, "base")
    equal(info.metadata, METADATA)
    equal(info.state, SandboxState.RUNNING)
    equal(info.lifecycle["on_timeout"], "kill")
    assert info.cpu_count > 0 and info.memory_mb > 0, info
    assert before - timedelta(seconds=2) < info.started_at < before + timedelta(seconds=60), info
    assert abs((info.end_at - info.started_at).total_seconds() - 120) < 5, info
    equal(Sandbox.get_info(sandbox.sandbox_id), info)
    assert isinstance(sandbox.get_metrics(), list)

    equal(sandbox.kill(), True)
    equal(sandbox.kill(), False)
    equal(Sandbox.kill(sandbox.sandbox_id), False)
    equal(sandbox.is_running(), False)
    with raises(SandboxNotFoundException, sandbox.sandbox_id):
        sandbox.get_info()
    with raises(SandboxNotFoundException):
        sandbox.set_timeout(60)
    with raises(SandboxNotFoundException):
        sandbox.pause()
    with raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    with raises(SandboxNotRunningException):
        sandbox.commands.run("true")
    with raises(SandboxNotRunningException):
        sandbox.commands.list()
    with raises(SandboxNotRunningException):
        sandbox.files.read("/tmp/file")
    with raises(SandboxNotRunningException):
        sandbox.files.write("/tmp/file", "text")
    with raises(SandboxNotRunningException):
        sandbox.files.list("/tmp")


def kill_interrupts(bench):
    sandbox = bench.create()
    handle = sandbox.commands.run("sleep 300", background=True)
    threading.Timer(0.2, lambda: Sandbox.kill(sandbox.sandbox_id)).start()
    with raises(SandboxNotRunningException):
        handle.wait()


def defaults(bench):
    sandbox = bench.keep(Sandbox.create())
    info = sandbox.get_info()
    equal(info.metadata, {})
    assert abs((info.end_at - info.started_at).total_seconds() - 300) < 5, info


def listing(bench):
    metadata = {"run": RUN + "-list", "k&=+% ü": "a&b=c+d%20e f/ü日本"}
    made = [bench.create(metadata={**metadata, "n": str(n)}).sandbox_id for n in range(3)]
    bench.create(metadata={**metadata, "k&=+% ü": "a&b=c d%20e f/ü日本"})

    def ids(**options):
        query = SandboxQuery(metadata=metadata, **options.pop("query", {}))
        return [[i.sandbox_id for i in page] for page in all_items(Sandbox.list(query, **options))]

    equal(ids(order="asc"), [made])
    equal(ids(), [made[::-1]])
    equal(ids(limit=2), [made[:0:-1], made[:1]])
    equal(ids(limit=2, order="asc"), [made[:2], made[2:]])
    equal(ids(limit=3), [made[::-1]])
    equal(ids(query={"state": [SandboxState.RUNNING]}), [made[::-1]])
    equal(ids(query={"state": [SandboxState.PAUSED]}), [[]])
    equal(ids(query={"template": "base"}), [made[::-1]])
    hour = timedelta(hours=1)
    now = datetime.now(timezone.utc)
    equal(ids(query={"started_after": now - hour}), [made[::-1]])
    equal(ids(query={"started_after": now + hour}), [[]])

    page = Sandbox.list(SandboxQuery(metadata=metadata), limit=2)
    page.next_items()
    rest = Sandbox.list(SandboxQuery(metadata=metadata), limit=2, next_token=page.next_token)
    (item,) = rest.next_items()
    equal(rest.has_next, False)
    equal(item.metadata, {**metadata, "n": "0"})
    equal(item.sandbox_id, made[0])
    equal(item.state, SandboxState.RUNNING)
    with raises(SandboxException):
        Sandbox.list(SandboxQuery(metadata=metadata), next_token="nonsense").next_items()


def timeouts(bench):
    sandbox = bench.create(timeout=60)

    def left(handle):
        return (handle.get_info().end_at - datetime.now(timezone.utc)).total_seconds()

    sandbox.set_timeout(600)
    assert 590 < left(sandbox) < 602, left(sandbox)
    Sandbox.set_timeout(sandbox.sandbox_id, 300)
    assert 290 < left(sandbox) < 302, left(sandbox)

    sandbox.files.write("first", TEXT)
    second = Sandbox.connect(sandbox.sandbox_id, timeout=30)
    equal(second.sandbox_id, sandbox.sandbox_id)
    assert left(second) > 290, left(second)  # never shortened
    equal(second.files.read("first"), TEXT)
    assert sandbox.connect(timeout=900) is sandbox
    assert left(sandbox) > 890, left(sandbox)

    sandbox.set_timeout(1)
    eventually(lambda: not sandbox.is_running(), "the end of a sandbox of one second")
    with raises(SandboxNotFoundException):
        sandbox.get_info()
    with raises(SandboxNotRunningException):
        sandbox.files.read("first")


def refusals(bench):
    with raises(AuthenticationException, "401"):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with raises(AuthenticationException, "401"):
        Sandbox.list(api_key="e2b_nonsense").next_items()
    with raises(SandboxException, "404", "no-such-template"):
        Sandbox.create("no-such-template")
    with raises(SandboxException, "400"):
        Sandbox.create(timeout=0)
    with raises(SandboxException, "400"):
        Sandbox.create(timeout=10**8)
    with raises(SandboxException, "400"):
        Sandbox.get_info("Not-An-ID")
    unknown = "i" + "0" * 20
    with raises(SandboxNotFoundException):
        Sandbox.connect(unknown)
    with raises(SandboxNotFoundException):
        Sandbox.get_info(unknown)
    with raises(SandboxNotFoundException):
        Sandbox.set_timeout(unknown, 60)
    equal(Sandbox.kill(unknown), False)


def pauses(bench):
    sandbox = bench.create(metadata={"run": RUN + "-pause"})
    sandbox.files.write("kept", TEXT)
    process = sandbox.commands.run("sleep 300", background=True, timeout=0)
    equal(sandbox.pause(), True)
    equal(sandbox.pause(), False)
    equal(sandbox.get_info().state, SandboxState.PAUSED)
    query = SandboxQuery(metadata={"run": RUN + "-pause"}, state=[SandboxState.PAUSED])
    equal([i.sandbox_id for i in Sandbox.list(query).next_items()], [sandbox.sandbox_id])
    equal(sandbox.is_running(), False)
    with raises(SandboxNotRunningException):
        sandbox.files.read("kept")
    with raises(SandboxNotRunningException):
        process.wait()

    again = Sandbox.connect(sandbox.sandbox_id, timeout=200)
    equal(again.get_info().state, SandboxState.RUNNING)
    equal(again.files.read("kept"), TEXT)
    equal(sandbox.files.read("kept"), TEXT)
    assert process.pid in [p.pid for p in sandbox.commands.list()], "the process is gone"
    equal(sandbox.commands.kill(process.pid), True)
    equal(sandbox.pause(), True)
    equal(sandbox.kill(), True)
    with raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def pauses_files_only(bench):
    sandbox = bench.create()
    sandbox.files.write("kept", TEXT)
    process = sandbox.commands.run("sleep 300", background=True, timeout=0)
    equal(sandbox.pause(mode="filesystem"), True)
    sandbox.connect()
    equal(sandbox.files.read("kept"), TEXT)
    assert process.pid not in [p.pid for p in sandbox.commands.list()], "the process goes on"


def resumes_by_itself(bench):
    sandbox = bench.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    equal(sandbox.get_info().lifecycle, {"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("kept", TEXT)
    sandbox.set_timeout(1)
    eventually(lambda: sandbox.get_info().state == SandboxState.PAUSED, "a pause by itself")
    equal(sandbox.files.read("kept"), TEXT)
    equal(sandbox.get_info().state, SandboxState.RUNNING)


def snapshots(bench):
    sandbox = bench.create()
    sandbox.files.write("kept", TEXT)
    name = "sdk-" + RUN
    snapshot = sandbox.create_snapshot(name)
    assert any(name in n for n in snapshot.names), snapshot
    unnamed = Sandbox.create_snapshot(sandbox.sandbox_id)
    listed = [s.snapshot_id for page in all_items(sandbox.list_snapshots(limit=1)) for s in page]
    equal(sorted(listed), sorted([snapshot.snapshot_id, unnamed.snapshot_id]))
    equal([s.snapshot_id for s in Sandbox.list_snapshots(name=name).next_items()], [snapshot.snapshot_id])

    sandbox.files.write("kept", "changed since")
    for which in (snapshot, unnamed):
        copy = bench.create(template=which.snapshot_id)
        equal(copy.files.read("kept"), TEXT)
        copy.kill()
    equal(sandbox.files.read("kept"), "changed since")
    for which in (snapshot, unnamed):
        equal(Sandbox.delete_snapshot(which.snapshot_id), True)
        equal(Sandbox.delete_snapshot(which.snapshot_id), False)


def forks(bench):
    sandbox = bench.create()
    sandbox.files.write("kept", TEXT)
    children = sandbox.fork(timeout=60, count=2)
    equal(len(children), 2)
    for child in children:
        bench.keep(child)
        equal(child.files.read("kept"), TEXT)
        child.files.write("kept", "changed")
    equal(sandbox.files.read("kept"), TEXT)
    equal(len({sandbox.sandbox_id, *(c.sandbox_id for c in children)}), 3)


def request(url, data=None, headers=None):
    """Sends a request as a browser does, and returns status and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=PATIENCE) as r:
            return r.status, r.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def form(content):
    """The body of an upload of one file, and its headers."""
    head = 'Content-Disposition: form-data; name="file"; filename="any"'
    body = f"--XX\r\n{head}\r\n\r\n".encode() + content + b"\r\n--XX--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=XX"}


def signed_urls(bench):
    sandbox = bench.create()
    # E2B finds the sandbox by the name of the host, which this server is not
    # reached by.
    host = {"Host": sandbox.get_host(49983)}
    for options in ({}, {"use_signature_expiration": 60}):
        body, headers = form(BINARY)
        status, answer = request(sandbox.upload_url("/tmp/signed", **options), body, {**headers, **host})
        equal((status, json.loads(answer)[0]["path"]), (200, "/tmp/signed"))
        equal(sandbox.files.read("/tmp/signed", format="bytes"), BINARY)
        url = sandbox.download_url("/tmp/signed", **options)
        equal(request(url, headers=host), (200, BINARY))
        equal(request(url.replace("signed", "other"), headers=host)[0], 401)
        equal(request(sandbox.upload_url("/tmp/signed", **options), headers=host)[0], 401)
        sandbox.files.remove("/tmp/signed")
    equal(request(sandbox.download_url("/tmp/x", use_signature_expiration=-60), headers=host)[0], 401)
    unsigned, _, _ = sandbox.download_url("/tmp/x").partition("&signature=")
    equal(request(unsigned, headers=host)[0], 401)
    equal(request(urllib.parse.urljoin(unsigned, "/metrics"), headers=host)[0], 401)
    equal(request(urllib.parse.urljoin(unsigned, "/health"), headers=host)[0], 204)


async def asynchronous():
    sandbox = await AsyncSandbox.create(timeout=120, metadata=METADATA)
    try:
        equal((await sandbox.get_info()).metadata, METADATA)
        await asynchronous_daemon(sandbox)
    finally:
        equal(await sandbox.kill(), True)
    equal(await sandbox.is_running(), False)
    with raises(SandboxNotRunningException):
        await sandbox.commands.run("true")


# ------------------------------------------------------------ the daemon


async def asynchronous_daemon(sandbox=None):
    sandbox = sandbox or await AsyncSandbox.create()
    base = f"/tmp/sdktest-{uuid.uuid4().hex}"
    equal(await sandbox.files.make_dir(base), True)
    try:
        await asynchronous_files(sandbox, base)
        await asynchronous_commands(sandbox)
        await asynchronous_watch(sandbox, base)
    finally:
        await sandbox.files.remove(base)


async def asynchronous_files(sandbox, base):
    async def chunks():
        for n in range(64):
            yield bytes([n]) * 1024

    await sandbox.files.write(f"{base}/text", TEXT)
    equal(await sandbox.files.read(f"{base}/text"), TEXT)
    await sandbox.files.write(f"{base}/chunks", chunks())
    received = b""
    async for chunk in await sandbox.files.read(f"{base}/chunks", format="stream"):
        received += chunk
    equal(received, b"".join(bytes([n]) * 1024 for n in range(64)))
    equal([e.name for e in await sandbox.files.list(base)], ["chunks", "text"])
    results = await asyncio.gather(*(sandbox.files.write(f"{base}/many/{n}", str(n)) for n in range(30)))
    equal([r.name for r in results], [str(n) for n in range(30)])
    with raises(FileNotFoundException):
        await sandbox.files.read(f"{base}/missing")


async def asynchronous_commands(sandbox):
    result = await sandbox.commands.run("echo async")
    equal((result.stdout, result.stderr, result.exit_code), ("async\n", "", 0))
    with raises(CommandExitException):
        await sandbox.commands.run("false")
    got = []
    cat = await sandbox.commands.run("cat", background=True, stdin=True, on_stdout=got.append)
    await cat.send_stdin("over there\n")
    await cat.close_stdin()
    equal((await cat.wait()).stdout, "over there\n")
    equal("".join(got), "over there\n")
    sleep = await sandbox.commands.run("sleep 300", background=True)
    equal(await sleep.kill(), True)
    with raises(CommandExitException):
        await sleep.wait()
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(10)))
    equal([r.stdout for r in results], [f"{n}\n" for n in range(10)])


async def asynchronous_watch(sandbox, base):
    seen, exited = [], []
    handle = await sandbox.files.watch_dir(base, seen.append, on_exit=exited.append)
    await sandbox.files.write(f"{base}/watched", "text")
    deadline = time.monotonic() + PATIENCE
    while not any(e.name == "watched" and e.type == FilesystemEventType.WRITE for e in seen):
        assert time.monotonic() < deadline, f"no event: {seen}"
        await asyncio.sleep(0.02)
    await handle.stop()


def files(bench, sandbox):
    with bench.directory(sandbox) as base:
        info = sandbox.files.write(f"{base}/text", TEXT)
        equal((info.name, info.path, info.type), ("text", f"{base}/text", FileType.FILE))
        equal(sandbox.files.read(f"{base}/text"), TEXT)
        sandbox.files.write(f"{base}/text", "short")
        equal(sandbox.files.read(f"{base}/text"), "short")
        sandbox.files.write(f"{base}/binary", BINARY)
        equal(sandbox.files.read(f"{base}/binary", format="bytes"), BINARY)
        sandbox.files.write(f"{base}/empty", b"")
        equal(sandbox.files.read(f"{base}/empty", format="bytes"), b"")

        sandbox.files.write(f"{base}/stream", io.BytesIO(BINARY * 1000))
        equal(b"".join(sandbox.files.read(f"{base}/stream", format="stream")), BINARY * 1000)
        sandbox.files.write(f"{base}/stream", (BINARY for _ in range(10)))
        equal(sandbox.files.read(f"{base}/stream", format="bytes"), BINARY * 10)
        sandbox.files.write(f"{base}/zip", TEXT * 1000, gzip=True)
        equal(sandbox.files.read(f"{base}/zip", gzip=True), TEXT * 1000)
        sandbox.files.write(f"{base}/octets", BINARY, use_octet_stream=True)
        equal(sandbox.files.read(f"{base}/octets", format="bytes"), BINARY)

        odd = f"{base}/a dir/ü & 日本 + 100% #?.txt"
        equal(sandbox.files.write(odd, TEXT).path, odd)
        equal(sandbox.files.read(odd), TEXT)
        equal([e.path for e in sandbox.files.list(f"{base}/a dir")], [odd])

        with raises(FileNotFoundException, "missing"):
            sandbox.files.read(f"{base}/missing")
        with raises(FileNotFoundException):
            sandbox.files.read(f"{base}/missing", format="stream")
        with raises(InvalidArgumentException):
            sandbox.files.read(base)
        with raises(InvalidArgumentException):
            sandbox.files.write(base, TEXT)
        with raises(AuthenticationException):
            sandbox.files.read(f"{base}/text", user="nobody-of-that-name")


def many_files(bench, sandbox):
    with bench.directory(sandbox) as base:
        entries = [{"path": f"{base}/many/{n:02}", "data": f"file {n}"} for n in range(40)]
        entries.append({"path": f"{base}/many/ü &", "data": BINARY})
        equal([i.path for i in sandbox.files.write_files(entries)], [e["path"] for e in entries])
        for entry in entries[:3]:
            equal(sandbox.files.read(entry["path"]), entry["data"])
        equal(sandbox.files.read(entries[-1]["path"], format="bytes"), BINARY)
        equal(len(sandbox.files.list(f"{base}/many")), 41)
        equal(sandbox.files.write_files([]), [])


def big_file(bench, sandbox):
    # The same noise again and again is quick to compress, which both ends do.
    noise = os.urandom(16 << 10)
    content = b"".join(n.to_bytes(4, "big") + noise for n in range(512))
    with bench.directory(sandbox) as base:
        for data in (content, io.BytesIO(content)):
            sandbox.files.write(f"{base}/big", data)
            equal(sandbox.files.get_info(f"{base}/big").size, len(content))
            assert sandbox.files.read(f"{base}/big", format="bytes") == content, "it changed on its way"
        received = b"".join(sandbox.files.read(f"{base}/big", format="stream"))
        assert received == content, "it changed in the stream"


def directories(bench, sandbox):
    with bench.directory(sandbox) as base:
        equal(sandbox.files.make_dir(f"{base}/x/y/z"), True)
        equal(sandbox.files.make_dir(f"{base}/x/y/z"), False)
        sandbox.files.write(f"{base}/x/y/file", "12345")

        def paths(depth):
            return [e.path.removeprefix(base) for e in sandbox.files.list(base, depth=depth)]

        equal(paths(1), ["/x"])
        equal(paths(2), ["/x", "/x/y"])
        equal(paths(9), ["/x", "/x/y", "/x/y/file", "/x/y/z"])

        info = sandbox.files.get_info(f"{base}/x/y/file")
        equal((info.name, info.path, info.type, info.size), ("file", f"{base}/x/y/file", FileType.FILE, 5))
        equal((info.mode, info.permissions, info.symlink_target), (0o644, "-rw-r--r--", None))
        assert abs((datetime.now(timezone.utc) - info.modified_time).total_seconds()) < 60, info
        info = sandbox.files.get_info(f"{base}/x")
        equal((info.type, info.mode, info.permissions), (FileType.DIR, 0o755, "drwxr-xr-x"))

        equal([sandbox.files.exists(f"{base}/{p}") for p in ("x", "x/y/file", "nothing")], [True, True, False])
        moved = sandbox.files.rename(f"{base}/x/y/file", f"{base}/new/place")
        equal((moved.name, moved.path, moved.size), ("place", f"{base}/new/place", 5))
        equal(sandbox.files.exists(f"{base}/x/y/file"), False)
        sandbox.files.rename(f"{base}/x", f"{base}/w")
        equal(sandbox.files.exists(f"{base}/w/y/z"), True)
        sandbox.files.remove(f"{base}/w")
        sandbox.files.remove(f"{base}/w")
        equal([e.name for e in sandbox.files.list(base)], ["new"])

        with raises(FileNotFoundException):
            sandbox.files.list(f"{base}/nothing")
        with raises(FileNotFoundException):
            sandbox.files.get_info(f"{base}/nothing")
        with raises(FileNotFoundException):
            sandbox.files.rename(f"{base}/nothing", f"{base}/else")
        sandbox.files.make_dir(f"{base}/empty")
        with raises(SandboxException):
            sandbox.files.rename(f"{base}/new", f"{base}/empty")
        with raises(InvalidArgumentException):
            sandbox.files.list(f"{base}/new/place")
        with raises(InvalidArgumentException):
            sandbox.files.make_dir(f"{base}/new/place")


def relative_paths(bench, sandbox):
    name = f"sdktest-{uuid.uuid4().hex}"
    info = sandbox.files.write(name, TEXT)
    try:
        assert info.path.startswith("/") and info.path.endswith("/" + name), info
        equal(sandbox.files.read(info.path), TEXT)
        equal(sandbox.files.get_info(name).path, info.path)
        equal(sandbox.commands.run(f"cat {name}").stdout, TEXT)
    finally:
        sandbox.files.remove(name)
    equal(sandbox.files.exists(info.path), False)


def watching(bench, sandbox):
    with bench.directory(sandbox) as base:
        sandbox.files.write(f"{base}/old", "text")
        plain = sandbox.files.watch_dir(base, include_entry=True)
        deep = sandbox.files.watch_dir(base, recursive=True)
        sandbox.files.write(f"{base}/new", "text")
        sandbox.files.rename(f"{base}/old", f"{base}/moved")
        sandbox.files.remove(f"{base}/new")
        sandbox.files.make_dir(f"{base}/sub")
        sandbox.files.make_dir(f"{base}/sub/below")

        def wait(handle, *wanted):
            seen = []

            def complete():
                seen.extend(handle.get_new_events())
                return set(wanted) <= {(e.name, e.type) for e in seen}

            try:
                eventually(complete, f"the events {wanted}")
            except AssertionError as e:
                raise AssertionError(f"{e}: {seen}") from None
            return seen

        kind = FilesystemEventType
        seen = wait(
            plain,
            ("new", kind.CREATE),
            ("new", kind.WRITE),
            ("old", kind.RENAME),
            ("moved", kind.CREATE),
            ("new", kind.REMOVE),
            ("sub", kind.CREATE),
        )
        assert all("/" not in e.name for e in seen), seen
        (moved,) = [e for e in seen if (e.name, e.type) == ("moved", kind.CREATE)]
        equal((moved.entry.path, moved.entry.size), (f"{base}/moved", 4))
        assert not [e for e in seen if e.type == kind.REMOVE and e.entry], seen
        wait(deep, ("sub", kind.CREATE), ("sub/below", kind.CREATE))
        plain.stop()
        deep.stop()
        with raises(SandboxException):
            plain.get_new_events()
        with raises(FileNotFoundException):
            sandbox.files.watch_dir(f"{base}/nothing")
        with raises(InvalidArgumentException):
            sandbox.files.watch_dir(f"{base}/moved")


def commands(bench, sandbox):
    result = sandbox.commands.run("echo hello world")
    equal((result.stdout, result.stderr, result.exit_code, result.error), ("hello world\n", "", 0, None))
    with raises(CommandExitException):
        sandbox.commands.run("false")
    try:
        sandbox.commands.run("exit 3")
    except CommandExitException as e:
        equal((e.exit_code, e.stdout, e.error), (3, "", "exit status 3"))
    else:
        raise AssertionError("no exception")
    with raises(CommandExitException, "127"):
        sandbox.commands.run("no-such-program-anywhere")
    with raises(InvalidArgumentException, "/no/such/dir"):
        sandbox.commands.run("true", cwd="/no/such/dir")
    with raises(AuthenticationException):
        sandbox.commands.run("true", user="nobody-of-that-name")
    with raises(NotFoundException):
        sandbox.commands.connect(999999)
    with raises(NotFoundException):
        sandbox.commands.send_stdin(999999, "text")
    equal(sandbox.commands.kill(999999), False)


def stdin(bench, sandbox):
    cat = sandbox.commands.run("cat", background=True, stdin=True)
    cat.send_stdin("one\n")
    sandbox.commands.send_stdin(cat.pid, b"two \xc3\xbc\n")
    sandbox.commands.stream_input(cat.pid, ["three\n", b"four\n"])
    cat.close_stdin()
    equal(cat.wait().stdout, "one\ntwo ü\nthree\nfour\n")

    equal(sandbox.commands.run("cat").stdout, "")  # there is nothing to be read
    for opened in (True, False):
        deaf = sandbox.commands.run("sleep 300", background=True, stdin=opened)
        sandbox.commands.close_stdin(deaf.pid)
        deaf.close_stdin()
        with raises(SandboxException, "stdin"):
            deaf.send_stdin("too late")
        deaf.kill()


def background(bench, sandbox):
    handle = sandbox.commands.run("sleep 300", background=True, timeout=0)
    (process,) = [p for p in sandbox.commands.list() if p.pid == handle.pid]
    equal((process.cmd, process.args), ("/bin/bash", ["-l", "-c", "sleep 300"]))
    handle.disconnect()
    assert handle.pid in [p.pid for p in sandbox.commands.list()], "it ended with its handle"

    again = sandbox.commands.connect(handle.pid)
    equal(again.pid, handle.pid)
    equal(sandbox.commands.kill(handle.pid), True)
    try:
        again.wait()
    except CommandExitException as e:
        equal((e.exit_code, e.error), (-1, "signal: killed"))
    else:
        raise AssertionError("no exception")
    eventually(lambda: handle.pid not in [p.pid for p in sandbox.commands.list()], "that it is gone")
    equal(sandbox.commands.kill(handle.pid), False)
    with raises(CommandExitException):
        sandbox.commands.connect(handle.pid).wait()  # its end is remembered


def command_timeout(bench, sandbox):
    began = time.monotonic()
    with raises(TimeoutException):
        sandbox.commands.run("sleep 300", timeout=1)
    assert 0.9 < time.monotonic() - began < 10, "not in time"
    gone = lambda: not [p for p in sandbox.commands.list() if p.args[-1:] == ["sleep 300"]]
    eventually(gone, "the end of what timed out")


def shell(bench, sandbox):
    with bench.directory(sandbox) as base:
        script = 'echo "out $WHO"; echo "err" >&2; pwd; exit 7'
        out, err = [], []
        try:
            sandbox.commands.run(script, envs={"WHO": "ü & me"}, cwd=base, on_stdout=out.append, on_stderr=err.append)
        except CommandExitException as e:
            equal((e.exit_code, e.stdout, e.stderr), (7, f"out ü & me\n{base}\n", "err\n"))
        else:
            raise AssertionError("no exception")
        equal(("".join(out), "".join(err)), (f"out ü & me\n{base}\n", "err\n"))

        me, home, cwd = sandbox.commands.run("echo $USER $HOME; pwd").stdout.split()
        equal(cwd, home)
        equal(sandbox.commands.run("echo $USER $HOME", user=me).stdout, f"{me} {home}\n")
        equal(sandbox.commands.run("echo $USER $LOGNAME", user="root").stdout, "root root\n")
        sandbox.files.write(f"{base}/mine", TEXT)
        equal(sandbox.files.get_info(f"{base}/mine").owner, me)
        sandbox.commands.run(f"test -O {base}/mine")
        sandbox.files.write(f"{base}/yours", TEXT, user="root")
        sandbox.files.write(f"{base}/yours", TEXT)
        equal(sandbox.files.get_info(f"{base}/yours").owner, me)

        sandbox.commands.run(f"ln -s mine {base}/link; mkdir {base}/dir; ln -s dir {base}/dirlink")
        link = sandbox.files.get_info(f"{base}/link")
        equal((link.symlink_target, link.type), (f"{base}/mine", FileType.FILE))
        equal(sandbox.files.get_info(f"{base}/dirlink").type, FileType.DIR)
        equal(sandbox.files.read(f"{base}/link"), TEXT)

        big = sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x")
        equal((len(big.stdout), set(big.stdout)), (3000000, {"x"}))
        equal(sandbox.commands.run("printf 'a\\xc3'; sleep 0.1; printf '\\xbcz'").stdout, "aüz")


def callbacks(bench, sandbox):
    with bench.directory(sandbox) as base:
        handle = sandbox.commands.run(f"echo first; until test -e {base}/go; do sleep 0.05; done; echo second", background=True)
        seen = []

        def on_stdout(chunk):
            seen.append(chunk)
            if len(seen) == 1:  # it is still running
                sandbox.files.write(f"{base}/go", "")

        equal(handle.wait(on_stdout=on_stdout).stdout, "first\nsecond\n")
        equal("".join(seen), "first\nsecond\n")

        script = f"until test -e {base}/on; do sleep 0.05; done; echo seen; exit 4"
        pid = sandbox.commands.run(script, background=True).pid
        second = sandbox.commands.connect(pid)
        sandbox.files.write(f"{base}/on", "")
        try:
            second.wait()
        except CommandExitException as e:
            equal((e.exit_code, e.stdout), (4, "seen\n"))
        else:
            raise AssertionError("no exception")


def terminal(bench, sandbox):
    with bench.directory(sandbox) as base:
        handle = sandbox.pty.create(PtySize(rows=31, cols=97), envs={"PS1": ""})
        wait = lambda name: f"until test -e {base}/{name}; do sleep 0.05; done"
        # It waits before it exits: the kernel throws away what of a terminal was
        # not read by then.
        line = f"stty size; {wait('resized')}; stty size; {wait('seen')}; exit 5\n"
        sandbox.pty.send_stdin(handle.pid, line.encode())
        sandbox.pty.resize(handle.pid, PtySize(rows=40, cols=120))
        sandbox.files.write(f"{base}/resized", "")
        output = bytearray()

        def on_pty(chunk):
            before = b"40 120" in output
            output.extend(chunk)
            if not before and b"40 120" in output:
                sandbox.files.write(f"{base}/seen", "")

        with raises(CommandExitException, "5"):
            handle.wait(on_pty=on_pty)


def environment(bench):
    sandbox = bench.create(envs={"GREETING": "hello & ü", "BOTH": "sandbox"})
    script = 'echo "$GREETING $BOTH $E2B_SANDBOX_ID $OWN"'
    got = sandbox.commands.run(script, envs={"BOTH": "command", "OWN": "x"}).stdout
    equal(got, f"hello & ü command {sandbox.sandbox_id} x\n")


def listed_templates():
    key = {"X-API-Key": os.environ["E2B_API_KEY"]}
    with urllib.request.urlopen(urllib.request.Request(os.environ["E2B_API_URL"] + "/v2/templates", headers=key)) as answer:
        return {name: t for t in json.load(answer) for name in t["aliases"]}


def templates(bench):
    name = "python-" + RUN[:12]
    equal(Template.exists(name), False)
    with tempfile.TemporaryDirectory() as directory:
        context = pathlib.Path(directory)
        (context / "app" / "data").mkdir(parents=True)
        (context / "app" / "run.sh").write_text("echo running\n")
        (context / "app" / "data" / "values.txt").write_text(TEXT)
        (context / "app" / "link").symlink_to("data/values.txt")
        (context / "requirements.txt").write_text("pandas\n")
        template = (
            Template(file_context_path=context)
            .from_template("base")
            .copy("requirements.txt", "/srv/app/")
            .copy("app", "/opt/code", user="root", mode=0o755)
            .copy("app/*/*.txt", "values")
            .set_envs({"GREETING": "hello"})
            .set_workdir("/srv/app")
            .run_cmd('echo "$GREETING from $(pwd) by $(whoami)"; echo careful >&2')
            .run_cmd("mkdir /opt/packages && cp requirements.txt /opt/packages/pandas", user="root")
            .set_user("root")
            .set_start_cmd("touch /run/started && exec sleep 1000", wait_for_file("/run/started"))
        )
        logs = []
        built = Template.build(template, name, cpu_count=4, memory_mb=2048, on_build_logs=logs.append)
        lines = [entry.message for entry in logs]
        for want in ("[stdout]: hello from /srv/app by user", "[stderr]: careful", "Uploaded 'app'", "Template is ready"):
            assert any(want in line for line in lines), f"{want!r} is not in {lines}"

        again = []
        Template.build(Template(file_context_path=context).from_image("ubuntu:24.04").copy("app", "/opt/code", user="root", mode=0o755),
                       name + "-image", on_build_logs=again.append)
        assert any("Skipping upload of 'app'" in entry.message for entry in again), again

    equal(Template.exists(name), True)
    equal(Template.exists("mock-team/" + name), True)
    listed = listed_templates()[name]
    equal([listed["templateID"], listed["cpuCount"], listed["memoryMB"], listed["buildStatus"]], [built.template_id, 4, 2048, "ready"])
    assert f"{name}-image" in listed_templates()

    sandbox = bench.create(template=name)
    info = sandbox.get_info()
    equal([info.cpu_count, info.memory_mb, info.name], [4, 2048, name])
    script = "cat requirements.txt /opt/packages/pandas; /bin/sh /opt/code/run.sh; whoami; pwd; echo [$GREETING]"
    equal(sandbox.commands.run(script).stdout, "pandas\npandas\nrunning\nroot\n/srv/app\n[]\n")
    equal(sandbox.files.read("/opt/code/link"), TEXT)
    equal(sandbox.files.read("/home/user/values/data/values.txt"), TEXT)
    equal(sandbox.commands.run("stat -c '%U %a' /opt/code/data/values.txt requirements.txt").stdout, "root 755\nuser 644\n")
    equal(sandbox.files.exists("/run/started"), True)

    # Tags are given to what is built, and taken away.
    equal(Template.assign_tags(name, ["v1", "stable"]).build_id, built.build_id)
    equal({tag.tag: tag.build_id for tag in Template.get_tags(name)}, dict.fromkeys(["default", "v1", "stable"], built.build_id))
    Template.remove_tags(name, "v1")
    equal({tag.tag for tag in Template.get_tags(built.template_id)}, {"default", "stable"})
    bench.create(template=name + ":stable")
    with raises(SandboxException, "tag 'v1' does not exist"):
        bench.create(template=name + ":v1")

    # A failure says what went wrong, and where; the old build stays.
    logs = []
    failing = Template().from_template(name).run_cmd("echo first").run_cmd("echo no such package >&2; exit 7")
    with raises(BuildException, "exit status 7"):
        Template.build(failing, name, on_build_logs=logs.append)
    assert any("no such package" in entry.message for entry in logs), logs
    equal(listed_templates()[name]["buildStatus"], "error")
    bench.create(template=name)

    info = Template.build_in_background(Template().from_template(name).run_cmd("echo behind"), name + "-background", tags=["v2"])
    equal(info.tags, ["v2"])
    status = eventually(lambda: (s := Template.get_build_status(info)).status.value == "ready" and s, "it is built")
    assert any("behind" in entry.message for entry in status.log_entries), status
    bench.create(template=name + "-background:v2")


def built_elsewhere(bench):
    equal(Template.exists("from-go"), True)
    sandbox = bench.create(template="from-go")
    equal(sandbox.get_info().cpu_count, 1)
    equal(sandbox.files.read("/opt/from-go"), "built\n")


CONTROL = [
    lifecycle,
    defaults,
    listing,
    timeouts,
    refusals,
    kill_interrupts,
    pauses,
    resumes_by_itself,
    signed_urls,
]
COPIES = [pauses_files_only, snapshots, forks]
DAEMON = [
    files,
    many_files,
    big_file,
    directories,
    relative_paths,
    watching,
    commands,
    stdin,
    background,
    command_timeout,
]
SHELL = [shell, callbacks, terminal]


def sections(bench, features):
    """Yields the sections for what there is, by name."""
    sandbox = bench.create()
    for section in DAEMON + (SHELL if "shell" in features else []):
        yield section.__name__, lambda section=section: section(bench, sandbox)
    if "control" not in features:
        yield "asynchronous", lambda: asyncio.run(asynchronous_daemon())
        return
    some = CONTROL
    if "copies" in features:
        some = some + COPIES
    if "shell" in features:
        some = some + [environment]
    if "templates" in features:
        some = some + [templates]
    if "built" in features:
        some = some + [built_elsewhere]
    for section in some:
        yield section.__name__, lambda section=section: section(bench)
    yield "asynchronous", lambda: asyncio.run(asynchronous())


def main(features, *wanted):
    bench, failed = Bench(), []
    for name, run in sections(bench, features.split(",")):
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        try:
            run()
        except Exception:
            failed.append(name)
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok   {name} ({time.monotonic() - began:.2f} s)", flush=True)
    bench.close()
    if failed:
        sys.exit("failed: " + " ".join(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
