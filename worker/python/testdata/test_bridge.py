"""Tests of bridge.py by itself; the pool's tests are in Go. The first argument is its directory."""

import datetime
import decimal
import enum
import os
import pathlib
import sys
import tempfile
import unittest
import warnings

sys.path.insert(0, sys.argv.pop(1))
sys.dont_write_bytecode = True

import bridge

try:
    import pandas
    import pyarrow
except ModuleNotFoundError:
    pandas = pyarrow = None


class Plain(unittest.TestCase):
    def test_values(self):
        class Color(enum.IntEnum):
            RED = 1

        class Text(str):
            pass

        for value, want in (
            (None, None),
            (True, True),
            (1 << 70, 1 << 70),
            (1.5, 1.5),
            (float("nan"), None),
            (float("-inf"), None),
            ("\u00e9", "\u00e9"),
            ("\udcff", "\\udcff"),
            (Text("x"), "x"),
            (Color.RED, 1),
            ((1, [2]), [1, [2]]),
            ({2, 1}, [1, 2]),
            ({1: {"a": ()}}, {"1": {"a": []}}),
            (datetime.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
            (datetime.date(2026, 1, 2), "2026-01-02"),
            (datetime.timedelta(seconds=1), "0:00:01"),
            (decimal.Decimal("1.10"), "1.10"),
            (pathlib.PurePosixPath("/x"), "/x"),
        ):
            got = bridge.plain(value, strict=True)
            self.assertEqual(got, want)
            self.assertIs(type(got), type(want))

    def test_strict(self):
        self.assertEqual(bridge.plain(b"x"), "b'x'")
        with self.assertRaisesRegex(bridge.StepError, r"x\['a'\]\[1\] is a bytes"):
            bridge.plain({"a": [1, b"x"]}, strict=True, where="x")

    def test_depth(self):
        loop = []
        loop.append(loop)
        with self.assertRaisesRegex(bridge.StepError, "more than 100 levels"):
            bridge.plain(loop)

    @unittest.skipUnless(pandas, "takes pandas")
    def test_numpy(self):
        import numpy as np

        for value, want in (
            (np.int64(3), 3),
            (np.float32(1.5), 1.5),
            (np.float64("nan"), None),
            (np.bool_(True), True),
            (np.arange(2), [0, 1]),
            (np.datetime64("2026-01-02"), "2026-01-02"),
            (pandas.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
            (pandas.NaT, None),
        ):
            self.assertEqual(bridge.plain(value, strict=True), want)


class Describe(unittest.TestCase):
    def test_texts_are_left_out_whole(self):
        got = bridge.describe(ValueError("x" * (bridge.MAX_TEXT + 1)))
        self.assertEqual(got["message"], "(a text of %d characters is left out)" % (bridge.MAX_TEXT + 1))

    def test_surrogates(self):
        self.assertEqual(bridge.describe(ValueError("\udcff"))["message"], "\\udcff")

    def test_loop(self):
        a, b = ValueError("a"), ValueError("b")
        a.__context__, b.__context__ = b, a
        self.assertEqual(bridge.describe(a)["message"], "a")

    def test_kinds(self):
        for e, kind in ((KeyError("k"), "KeyError"), (SystemExit(2), "SystemExit"), (bridge.StepError("TypeError", "x"), "TypeError"), (decimal.InvalidOperation(), "decimal.InvalidOperation")):
            self.assertEqual(bridge.describe(e)["error_type"], kind)


class Modules(unittest.TestCase):
    def test_what_is_installed_below_a_source_stays(self):
        with tempfile.TemporaryDirectory() as source:
            installed = os.path.join(source, ".venv")
            os.mkdir(installed)
            for folder, name in ((source, "bridge_test_own"), (installed, "bridge_test_installed")):
                with open(os.path.join(folder, name + ".py"), "w"):
                    pass
            path, environ = list(sys.path), dict(os.environ)
            sys.path.append(installed)
            try:
                sources = bridge.Sources()
                cwd = os.getcwd()
                sources.enter({"cwd": cwd, "env": {}, "sources": [source]})
                import bridge_test_installed
                import bridge_test_own

                sources.enter({"cwd": cwd, "env": {"BRIDGE_TEST": "1"}, "sources": []})
                self.assertNotIn("bridge_test_own", sys.modules)
                self.assertIn("bridge_test_installed", sys.modules)
                self.assertNotIn(source, sys.path)
                self.assertEqual(os.environ["BRIDGE_TEST"], "1")
                sources.enter({"cwd": cwd, "env": {}, "sources": []})
                self.assertNotIn("BRIDGE_TEST", os.environ)
            finally:
                sys.path[:] = path
                self.assertEqual(dict(os.environ), environ)


@unittest.skipUnless(pandas, "takes pandas")
class Tables(unittest.TestCase):
    def test_losses(self):
        """What docs/python.md says is lost, and nothing else."""
        import numpy as np

        D, frame = decimal.Decimal, pandas.DataFrame
        objects = lambda *values: frame({"a": pandas.Series(values, dtype=object)})
        cut = pandas.cut(pandas.Series([1, 2, None]), 2)
        for given, want in (
            (frame({"a": [1, 2]}, index=["x", "y"]), frame({"a": [1, 2]})),
            (objects("x", float("nan")), objects("x", None)),
            (objects((1, 2), (3,)), objects([1, 2], [3])),
            (objects({1}, set()), objects([1], [])),
            (objects(np.array([1, 2]), np.array([3])), objects([1, 2], [3])),
            (objects({"x": 1}, {"y": 2}), objects({"x": 1, "y": None}, {"x": None, "y": 2})),
            (objects(D("1.10"), D("2")), objects(D("1.10"), D("2.00"))),
            (frame(index=range(3)), frame(index=range(0))),
            (frame({"a": cut}), frame({"a": cut.astype(cut.cat.categories.dtype)})),
            (frame([[1, 2]], columns=[1, "a"]), frame([[1, 2]], columns=["1", "a"])),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = bridge.to_frame(bridge.as_arrow("df", given))
            pandas.testing.assert_frame_equal(got, want, check_index_type=False)
            self.assertEqual([list(map(repr, got[c])) for c in got], [list(map(repr, want[c])) for c in want])
        for given, error in (
            (objects(1, "x"), "output 'df', column 'a': "),
            (objects(1 << 70), "output 'df', column 'a': "),
            (frame({"a": [1j]}), "output 'df', column 'a': "),
            (frame({"a": pandas.arrays.SparseArray([0, 1])}), "output 'df', column 'a': "),
            (frame([[1, 2]], columns=["a", "a"]), "output 'df': more than one column is called a"),
        ):
            with self.assertRaisesRegex(bridge.StepError, error):
                bridge.as_arrow("df", given)

    def test_batches(self):
        sizes = bridge.BATCH_BYTES
        bridge.BATCH_BYTES = 8000
        try:
            table = pyarrow.table({"a": range(10000)})
            got = list(bridge.batches(table))
            self.assertEqual(sum(b.num_rows for b in got), 10000)
            self.assertEqual({b.num_rows for b in got}, {1000})
            skewed = pyarrow.table({"a": ["x"] * 5000 + ["y" * 20000] * 4 + ["x"] * 5000})
            got = list(bridge.batches(skewed))
            self.assertEqual(pyarrow.Table.from_batches(got), skewed)
            self.assertLessEqual(max(b.nbytes for b in got), 4 * 8000)
        finally:
            bridge.BATCH_BYTES = sizes

    def test_parts(self):
        size = bridge.PART_BYTES
        bridge.PART_BYTES = 1000
        try:
            with tempfile.TemporaryDirectory() as folder:
                table = pyarrow.table({"a": range(5001), "c": pyarrow.array(["x", "y", None] * 1667).dictionary_encode()})
                files, rows = bridge.write_table(table, folder + "/t-")
                self.assertEqual(rows, 5001)
                self.assertEqual(files, ["t-%d" % i for i in range(len(files))])
                back = bridge.read_table([os.path.join(folder, f) for f in files])
                self.assertEqual(back.combine_chunks(), table)
        finally:
            bridge.PART_BYTES = size

    def test_disk_full(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("there is no /dev/full")
        with self.assertRaisesRegex(OSError, "No space left"):
            with tempfile.TemporaryDirectory() as folder:
                os.symlink("/dev/full", folder + "/t-0")
                bridge.write_table(pyarrow.table({"a": range(1000000)}), folder + "/t-")

    def test_views(self):
        if not hasattr(pyarrow, "string_view"):
            self.skipTest("pyarrow has no views")
        indices = pyarrow.array([0, 1, 0])
        words = pyarrow.array(["a", "b"], pyarrow.string_view())
        table = pyarrow.table({"a": pyarrow.array(["x", None, "y"], pyarrow.string_view()), "b": pyarrow.DictionaryArray.from_arrays(indices, words)})
        got = bridge.writable(pyarrow, table)
        self.assertEqual([str(f.type) for f in got.schema], ["large_string", "dictionary<values=large_string, indices=int64, ordered=0>"])
        self.assertEqual(got.to_pydict(), table.to_pydict())

    def test_metadata_of_others(self):
        # What is said of columns may be wrong, or no longer right.
        for meta in (b"{", b"[]", b'{"columns": [{}]}', b'{"columns": null}'):
            table = pyarrow.table({"a": [1, 2]}).replace_schema_metadata({b"pandas": meta})
            self.assertEqual(bridge.declared_types(table.schema), {})


if __name__ == "__main__":
    unittest.main()
