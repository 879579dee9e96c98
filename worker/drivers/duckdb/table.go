package duckdb

/*
#include <stdlib.h>
#include "arrow.h"
*/
import "C"

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	bindings "github.com/duckdb/duckdb-go-bindings"

	"github.com/osiris-pipelines/remote/worker"
)

// table is an input as DuckDB scans it: in place, any number of times, by any
// number of its threads, without a call of Go.
type table struct {
	batches []arrow.Record // C's pointers do not keep their memory from being freed
	c       *C.struct_table
}

// newTable makes df a view of the database, which must be closed before the
// table is released.
func (d *database) newTable(ctx context.Context, name string, df *worker.DataFrame) (*table, error) {
	var batches []arrow.Record
	r := df.Reader()
	defer r.Release()
	for r.Next() {
		rec := r.Record()
		rec.Retain()
		batches = append(batches, rec)
	}
	if err := r.Err(); err != nil {
		releaseAll(batches)
		return nil, err
	}
	c := C.table_new(C.handle(d.conn.Ptr), C.int64_t(len(batches)))
	if c == nil {
		releaseAll(batches)
		return nil, errMemory
	}
	t := &table{batches: batches, c: c}
	cdata.ExportArrowSchema(df.Schema(), (*cdata.CArrowSchema)(unsafe.Pointer(C.table_schema(c))))
	err := takeError(C.table_check(c)) // first, since what it refuses may not be exported
	if err == nil {
		for i, b := range batches {
			cdata.ExportArrowRecordBatch(b, (*cdata.CArrowArray)(unsafe.Pointer(C.table_batch(c, C.int64_t(i)))), nil)
			C.table_mend_batch(c, C.int64_t(i))
		}
		err = t.register(ctx, d, name)
	}
	if err != nil {
		return t, fmt.Errorf("input %q cannot be a table: %w", name, err)
	}
	return t, nil
}

// register makes the function that scans the table, and the view that calls it.
func (t *table) register(ctx context.Context, d *database, name string) error {
	// Names and types of columns as DuckDB sees them.
	d.functions++
	function := fmt.Sprintf("osiris_input_%d", d.functions)
	cFunction := C.CString(function)
	defer C.free(unsafe.Pointer(cFunction))
	if C.table_describe(t.c, cFunction) != 0 {
		return errors.New("it has a type of column that DuckDB has not")
	}
	var stmt bindings.PreparedStatement
	defer bindings.DestroyPrepare(&stmt)
	if bindings.Prepare(d.conn, "SELECT * FROM "+function, &stmt) != bindings.StateSuccess {
		return errors.New(bindings.PrepareError(stmt))
	}
	for i := range bindings.PreparedStatementColumnCount(stmt) {
		name := C.CString(bindings.PreparedStatementColumnName(stmt, i))
		C.table_column(t.c, C.int64_t(i), name, C.handle(bindings.PreparedStatementColumnLogicalType(stmt, i).Ptr))
	}
	if err := d.run(ctx, "DROP VIEW "+function); err != nil {
		return err
	}
	if err := takeError(C.table_register(t.c, cFunction)); err != nil {
		return err
	}
	return d.run(ctx, "CREATE VIEW "+identifier(name)+" AS SELECT * FROM "+function+"()")
}

// identifier quotes a name for SQL.
func identifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// literal quotes a text for SQL.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

var errMemory = errors.New("out of memory")

// release gives the input back.
func (t *table) release() {
	C.table_free(t.c)
	releaseAll(t.batches)
}

func releaseAll(batches []arrow.Record) {
	for _, b := range batches {
		b.Release()
	}
}

// converter makes Arrow of the chunks of a result, which must outlive it.
type converter struct {
	options bindings.ArrowOptions
	schema  *arrow.Schema
}

func newConverter(res *bindings.Result) (*converter, error) {
	n := int(bindings.ColumnCount(res))
	types := (*[1 << 28]C.handle)(C.calloc(C.size_t(n+1), C.size_t(unsafe.Sizeof(uintptr(0)))))[:n:n]
	names := (*[1 << 28]*C.char)(C.calloc(C.size_t(n+1), C.size_t(unsafe.Sizeof(uintptr(0)))))[:n:n]
	defer func() {
		for i := range n {
			t := bindings.LogicalType{Ptr: unsafe.Pointer(types[i])}
			bindings.DestroyLogicalType(&t)
			C.free(unsafe.Pointer(names[i]))
		}
		C.free(unsafe.Pointer(unsafe.SliceData(types)))
		C.free(unsafe.Pointer(unsafe.SliceData(names)))
	}()
	unique := uniqueNames(res)
	for i := range n {
		types[i] = C.handle(bindings.ColumnLogicalType(res, bindings.IdxT(i)).Ptr)
		names[i] = C.CString(unique[i])
	}
	for i, name := range unique {
		if typ := refusedIn(bindings.LogicalType{Ptr: unsafe.Pointer(types[i])}); typ != "" {
			return nil, fmt.Errorf("column %q: %s cannot be put out; cast it in the query, as %s::VARCHAR", name, typ, identifier(name))
		}
	}
	c := &converter{options: bindings.ResultGetArrowOptions(res)}
	raw := (*C.struct_ArrowSchema)(C.calloc(1, C.sizeof_struct_ArrowSchema))
	defer C.free(unsafe.Pointer(raw))
	err := takeError(C.duckdb_to_arrow_schema(C.handle(c.options.Ptr), unsafe.SliceData(types), unsafe.SliceData(names), C.uint64_t(n), raw))
	if err == nil {
		c.schema, err = cdata.ImportCArrowSchema((*cdata.CArrowSchema)(unsafe.Pointer(raw)))
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("result: %w", err)
	}
	return c, nil
}

// record returns a chunk's rows, which own their memory.
func (c *converter) record(chunk bindings.DataChunk) (arrow.Record, error) {
	raw := (*C.struct_ArrowArray)(C.calloc(1, C.sizeof_struct_ArrowArray))
	defer C.free(unsafe.Pointer(raw))
	if err := takeError(C.duckdb_data_chunk_to_arrow(C.handle(c.options.Ptr), C.handle(chunk.Ptr), raw)); err != nil {
		return nil, err
	}
	return cdata.ImportCRecordBatchWithSchema((*cdata.CArrowArray)(unsafe.Pointer(raw)), c.schema)
}

func (c *converter) close() { bindings.DestroyArrowOptions(&c.options) }

// takeError makes an error of one of DuckDB's, and destroys that.
func takeError(raw C.handle) error {
	if raw == nil {
		return nil
	}
	data := bindings.ErrorData{Ptr: unsafe.Pointer(raw)}
	defer bindings.DestroyErrorData(&data)
	if !bindings.ErrorDataHasError(data) {
		return nil
	}
	message := bindings.ErrorDataMessage(data)
	var exception struct {
		Type    string `json:"exception_type"`
		Message string `json:"exception_message"`
	}
	if err := json.Unmarshal([]byte(message), &exception); err == nil && exception.Message != "" {
		message = exception.Type + " Error: " + exception.Message
	}
	return errors.New(message)
}

// streamPending begins a statement whose rows are made as they are fetched.
func streamPending(stmt bindings.PreparedStatement, out *bindings.PendingResult) bool {
	var pending C.handle
	state := C.duckdb_pending_prepared_streaming(C.handle(stmt.Ptr), &pending)
	out.Ptr = unsafe.Pointer(pending)
	return state == 0
}

// uniqueNames returns the names of a result's columns, each once whatever its
// case, as DuckDB's Python client gives them: later ones have _1, _2 behind them.
func uniqueNames(res *bindings.Result) []string {
	names := make([]string, bindings.ColumnCount(res))
	seen := make(map[string]int) // how often, and so the next number
	for i := range names {
		name := bindings.ColumnName(res, bindings.IdxT(i))
		lower := strings.ToLower(name)
		unique := name
		for seen[strings.ToLower(unique)] > 0 {
			unique = fmt.Sprintf("%s_%d", name, seen[lower])
			if seen[strings.ToLower(unique)] > 0 {
				seen[lower]++
			}
		}
		if unique != name {
			seen[lower]++
		}
		seen[strings.ToLower(unique)]++
		names[i] = unique
	}
	return names
}

// refused returns the name of a type that is not put out: its values have no
// like in Arrow, where DuckDB makes others of them, or its own bytes; or, UNION,
// little can be done with it there.
func refused(t bindings.Type) string {
	switch t {
	case bindings.TypeUHugeInt:
		return "UHUGEINT"
	case bindings.TypeTimeTZ:
		return "TIME WITH TIME ZONE"
	case bindings.TypeBit:
		return "BIT"
	case bindings.TypeBigNum:
		return "BIGNUM"
	case bindings.TypeUnion:
		return "UNION"
	}
	return ""
}

// refusedIn returns the name of a type in t, at any depth, that is not put out.
func refusedIn(t bindings.LogicalType) string {
	var children []bindings.LogicalType
	id := bindings.GetTypeId(t)
	switch id {
	case bindings.TypeList:
		children = append(children, bindings.ListTypeChildType(t))
	case bindings.TypeArray:
		children = append(children, bindings.ArrayTypeChildType(t))
	case bindings.TypeMap:
		children = append(children, bindings.MapTypeKeyType(t), bindings.MapTypeValueType(t))
	case bindings.TypeStruct:
		for i := range bindings.StructTypeChildCount(t) {
			children = append(children, bindings.StructTypeChildType(t, i))
		}
	}
	name := refused(id)
	for _, child := range children {
		if inner := refusedIn(child); inner != "" {
			name = inner
		}
		bindings.DestroyLogicalType(&child)
	}
	return name
}
