#ifndef OSIRIS_DUCKDB_ARROW_H
#define OSIRIS_DUCKDB_ARROW_H

#include <stdbool.h>
#include <stdint.h>

// The C data interface of Arrow, as its specification declares it.

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

struct ArrowSchema {
	const char *format;
	const char *name;
	const char *metadata;
	int64_t flags;
	int64_t n_children;
	struct ArrowSchema **children;
	struct ArrowSchema *dictionary;
	void (*release)(struct ArrowSchema *);
	void *private_data;
};

struct ArrowArray {
	int64_t length;
	int64_t null_count;
	int64_t offset;
	int64_t n_buffers;
	int64_t n_children;
	const void **buffers;
	struct ArrowArray **children;
	struct ArrowArray *dictionary;
	void (*release)(struct ArrowArray *);
	void *private_data;
};

#endif

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
	int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
	int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
	const char *(*get_last_error)(struct ArrowArrayStream *);
	void (*release)(struct ArrowArrayStream *);
	void *private_data;
};

#endif

// What is called of DuckDB's C API beside what its Go bindings have without a
// build tag. Every handle of it is a pointer, and idx_t is 64 bits wide.

typedef void *handle;

extern int duckdb_pending_prepared_streaming(handle prepared, handle *pending);

extern handle duckdb_to_arrow_schema(handle options, handle *types, const char **names, uint64_t columns, struct ArrowSchema *out);
extern handle duckdb_data_chunk_to_arrow(handle options, handle chunk, struct ArrowArray *out);
extern handle duckdb_schema_from_arrow(handle connection, struct ArrowSchema *schema, handle *converted);
extern handle duckdb_data_chunk_from_arrow(handle connection, struct ArrowArray *array, handle converted, handle *chunk);
extern void duckdb_destroy_arrow_converted_schema(handle *converted);
extern int duckdb_arrow_scan(handle connection, const char *name, struct ArrowArrayStream *stream);

extern bool duckdb_error_data_has_error(handle error);
extern const char *duckdb_error_data_message(handle error);
extern void duckdb_destroy_error_data(handle *error);
extern void duckdb_destroy_logical_type(handle *type);

extern handle duckdb_data_chunk_get_vector(handle chunk, uint64_t column);
extern void duckdb_data_chunk_set_size(handle chunk, uint64_t size);
extern void duckdb_destroy_data_chunk(handle *chunk);
extern void duckdb_vector_reference_vector(handle to, handle from);
extern void *duckdb_vector_get_data(handle vector);
extern handle duckdb_vector_get_column_type(handle vector);
extern uint64_t duckdb_vector_size(void);

extern handle duckdb_create_table_function(void);
extern void duckdb_destroy_table_function(handle *function);
extern void duckdb_table_function_set_name(handle function, const char *name);
extern void duckdb_table_function_set_extra_info(handle function, void *extra, void (*destroy)(void *));
extern void duckdb_table_function_set_bind(handle function, void (*bind)(handle info));
extern void duckdb_table_function_set_init(handle function, void (*init)(handle info));
extern void duckdb_table_function_set_local_init(handle function, void (*init)(handle info));
extern void duckdb_table_function_set_function(handle function, void (*scan)(handle info, handle output));
extern void duckdb_table_function_supports_projection_pushdown(handle function, bool pushdown);
extern int duckdb_register_table_function(handle connection, handle function);

extern void *duckdb_bind_get_extra_info(handle info);
extern void duckdb_bind_add_result_column(handle info, const char *name, handle type);
extern void duckdb_bind_set_cardinality(handle info, uint64_t cardinality, bool exact);

extern void *duckdb_init_get_extra_info(handle info);
extern void duckdb_init_set_init_data(handle info, void *data, void (*destroy)(void *));
extern uint64_t duckdb_init_get_column_count(handle info);
extern uint64_t duckdb_init_get_column_index(handle info, uint64_t i);
extern void duckdb_init_set_max_threads(handle info, uint64_t threads);
extern void duckdb_init_set_error(handle info, const char *error);

extern void *duckdb_function_get_init_data(handle info);
extern void *duckdb_function_get_local_init_data(handle info);
extern void duckdb_function_set_error(handle info, const char *error);

// A table of Arrow batches that DuckDB scans in place.

struct table;

// table_new returns a table without columns and batches, or NULL. The caller
// fills in table_schema and every table_batch.
struct table *table_new(handle connection, int64_t batches);
struct ArrowSchema *table_schema(struct table *);
struct ArrowArray *table_batch(struct table *, int64_t);

// table_mend_batch mends what Arrow's Go library exports of slices of structs and
// unions: it counts their offset twice, in them and in their children.
void table_mend_batch(struct table *, int64_t);

// table_check returns why the table's columns cannot be scanned, to be
// destroyed, or NULL.
handle table_check(struct table *);

// table_describe makes a view that has the columns, but cannot be read.
int table_describe(struct table *, const char *view);

// table_column sets the name and type of a column. It takes both over; name is
// freed with free.
void table_column(struct table *, int64_t, char *name, handle type);

// table_register makes the table function that scans the table. It returns an
// error, to be destroyed, or NULL.
handle table_register(struct table *, const char *function);

// table_free frees the table. No scan may run any more.
void table_free(struct table *);

#endif
