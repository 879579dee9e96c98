// Package csv has the drivers filesystem.csv_extractor, which reads a CSV file
// as a table, and filesystem.csv_writer, which writes a table as one.
//
// Their semantics are those of the Python drivers of the same names, which
// call pandas: read_csv with the C engine, and to_csv(index=False) with the
// columns sorted by name. The same file gives the same values, and the same
// table the same bytes; pandas 3.1.1 is the reference, and what differs is
// listed below.
//
//	registry := worker.NewRegistry()
//	csv.Register(registry)
//
// # Extractor
//
// The output "df" is a stream of Arrow batches. The first pass over the file
// learns the column types, and of a file of at most 64 MiB makes the batches,
// too, under the types that the rows so far have. They are used when all rows
// turn out to have these types, and there are at most 64 MiB of them; otherwise
// a second pass makes the batches. Up to four goroutines share the work.
//
// Memory does not grow with the file: it is at most the batches kept, beside a
// block of 512 KiB for each goroutine. One row may have at most 64 MiB; a block
// is as large as its longest row. Errors of the data are found by the first
// pass, so Run returns them before any batch leaves. The metric rows_read is
// logged when the stream ends, also when it is 0.
//
//	path              file to read; required. Relative to the step's BasePath
//	delimiter         one byte; default ","
//	encoding          default "utf-8" (a byte order mark is skipped); utf-16, ascii, latin-1,
//	                  iso-8859-1, and the names of the IANA and WHATWG registries
//	header            true (default): the first row; false: none, columns are "0", "1", ...;
//	                  N: the row N (from 0), what stands above it is dropped
//	columns           subset of the columns, in the order to output
//	skip_rows         lines to skip at the start; default 0
//	limit             most rows to read; default all
//	parse_dates       names of columns to make timestamps; true and false do nothing
//	dtype             column name to type: int8..int64, uint8..uint64, float32, float64, bool, str,
//	                  string, object, category; Int64, Float64, boolean, ... allow missing values.
//	                  One type name alone is for all columns
//	na_values         texts that mean missing, beside pandas' own
//	comment           one byte; from it to the end of the line is dropped
//	on_bad_lines      error (default), skip, warn: rows with more fields than columns
//	skip_blank_lines  default true
//	compression       infer (default, by .gz .bz2 .zip .xz), gzip, bz2, zip, xz, none
//	chunk_size        most rows in one batch; default 10000. A batch also ends with its block, after 512 KiB of text
//
// Other keys are ignored with a debug log, since compiled configs carry the
// component's defaults.
//
// Types are inferred from the whole column:
//
//	all integers                      int64; leading zeros, a sign and spaces around are allowed
//	integers, some missing            float64, so that the writer prints 1.0
//	integers, some above int64        uint64; with a missing or negative value too, text as it stands
//	integers, some beyond uint64      utf8, each in canonical decimal form (Python's int)
//	numbers                           float64, rounded correctly; inf and infinity in any case
//	true, false in any case           bool, nullable
//	nothing but missing values        float64, all null
//	no rows                           utf8
//	anything else                     utf8; dates stay text
//
// parse_dates makes timestamp[us] (timestamp[ns] when a value has more than
// six decimals), with a zone when the values have one offset. Every value must
// have the layout of the first, as in pandas; otherwise the column stays text.
//
// Quotes are special only at the start of a field; what follows a closing
// quote belongs to the field. Lines end with LF, CRLF or CR. Short rows are
// filled with missing values.
//
// # Writer
//
// The input is the step's only table. Columns are sorted by name, by code
// point. The metric rows_written is logged when the file is closed.
//
//	path       file to write; required. Below the step's ArtifactsDir
//	delimiter  one byte; default ","
//	encoding   utf-8 (default), utf-8-sig, utf-16 (little endian with byte order mark), utf-16-le,
//	           utf-16-be, ascii, latin-1, and others as for the extractor
//	header     default true
//	newline    lf (default), crlf, cr
//	quoting    minimal (default), all, nonnumeric
//
// Missing values are empty; a row that is one empty field is written as "".
// Floats are written as Python's repr, booleans as True and False, timestamps
// as "2024-01-15 10:00:00" with as many decimals as the column needs (0, 3, 6
// or 9), as the date alone when no value of the column has a time and there is
// no zone, and with "+00:00" when there is one. Durations are written as
// "1 days 02:03:04", decimals as plain text, lists, structs and maps as JSON.
// Binary columns are an error.
//
// # Deviations from the original
//
//   - A connection is an error: this version does not resolve connections.
//   - discovery and directories are errors or ignored, not listings.
//   - A first data row with more fields than the header is an error. pandas
//     makes the first columns the index, and its writer then drops them.
//     With columns set to a subset the same holds; later rows are cut, as in pandas.
//   - Line numbers in errors are those of the file; pandas does not count line
//     breaks inside quotes.
//   - Booleans with missing values are nullable bool, where pandas has objects.
//   - pandas drops a delimiter right after a blank, comment or skipped line that
//     ends in CR, and joins a blank CR line that skip_rows skips with the next; here
//     CR is a line end like the others.
//   - A byte that is not text is an error also in a line that is dropped, as a
//     comment or a bad line; pandas does not look at it.
//   - header false gives columns that columns, dtype and parse_dates name as
//     "0", "1"; pandas takes only the numbers.
//   - A dtype of integers does not take True and False; category is as inferred,
//     but integers with missing values stay integers.
//   - parse_dates reads ISO 8601, YYYY/MM/DD, MM/DD/YYYY and DD/MM/YYYY (when the
//     first value cannot be the former), not the free forms of dateutil; a column
//     with more than one offset stays text, as in pandas.
//   - A number in na_values that is not whole does not make its whole part
//     missing, too, as it does in pandas.
//   - Encodings other than the named ones map bytes as the WHATWG standard does.
//   - The original's writer ignores quoting; here it has pandas' meaning.
//   - \r is always quoted, as in Python 3.13; before, only when newline was not lf.
//   - pandas decides per 100,000 cells how to print timestamps and durations; here
//     the whole column decides. Lists and structs are JSON, not Python's repr.
package csv

import "github.com/osiris-pipelines/remote/worker"

// The names under which [Register] adds the drivers.
const (
	ExtractorName = "filesystem.csv_extractor"
	WriterName    = "filesystem.csv_writer"
)

// Register adds both drivers to r. It panics when one of the names is taken.
func Register(r *worker.Registry) {
	r.Register(ExtractorName, worker.Extract, func() worker.Driver { return &Extractor{} })
	r.Register(WriterName, worker.Write, func() worker.Driver { return &Writer{} })
}
