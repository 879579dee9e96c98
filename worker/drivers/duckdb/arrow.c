#include "arrow.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// duckdb_arrow_scan would do, but for two faults of it: it reads a stream, so
// that a second scan finds nothing, and what DuckDB asks of it, certain columns
// and rows, it forgets. So a table is a table function here, which has DuckDB
// convert rows as duckdb_arrow_scan does: numbers, texts and lists stay where
// they are.

struct table {
	handle connection;
	struct ArrowSchema schema;
	int64_t columns; // of names and types
	char **names;
	handle *types;
	int64_t n;
	struct ArrowArray *batches;
	uint64_t rows;
	struct ArrowArrayStream stream;
};

// What is handed out are copies that own nothing: the table does.

static void keep_schema(struct ArrowSchema *s) { s->release = NULL; }
static void keep_array(struct ArrowArray *a) { a->release = NULL; }
static void keep_stream(struct ArrowArrayStream *s) { s->release = NULL; }

static int get_schema(struct ArrowArrayStream *s, struct ArrowSchema *out) {
	*out = ((struct table *)s->private_data)->schema;
	out->release = keep_schema;
	return 0;
}

static int get_next(struct ArrowArrayStream *s, struct ArrowArray *out) {
	(void)s;
	memset(out, 0, sizeof *out);
	return 0;
}

static const char *get_last_error(struct ArrowArrayStream *s) {
	(void)s;
	return NULL;
}

struct table *table_new(handle connection, int64_t batches) {
	struct table *t = calloc(1, sizeof *t);
	if (t == NULL)
		return NULL;
	t->batches = calloc(batches + 1, sizeof *t->batches);
	if (t->batches == NULL) {
		free(t);
		return NULL;
	}
	t->connection = connection;
	t->n = batches;
	t->stream.get_schema = get_schema;
	t->stream.get_next = get_next;
	t->stream.get_last_error = get_last_error;
	t->stream.release = keep_stream;
	t->stream.private_data = t;
	return t;
}

struct ArrowSchema *table_schema(struct table *t) { return &t->schema; }
struct ArrowArray *table_batch(struct table *t, int64_t i) { return &t->batches[i]; }

static void mend_offsets(struct ArrowSchema *s, struct ArrowArray *a) {
	bool shared = strcmp(s->format, "+s") == 0 || strncmp(s->format, "+us:", 4) == 0;
	for (int64_t i = 0; i < a->n_children; i++) {
		if (shared)
			a->children[i]->offset -= a->offset;
		mend_offsets(s->children[i], a->children[i]);
	}
	if (a->dictionary != NULL)
		mend_offsets(s->dictionary, a->dictionary);
}

void table_mend_batch(struct table *t, int64_t batch) {
	for (int64_t i = 0; i < t->schema.n_children; i++)
		mend_offsets(t->schema.children[i], t->batches[batch].children[i]);
}

handle table_check(struct table *t) {
	struct ArrowSchema schema = t->schema;
	schema.release = keep_schema;
	handle converted = NULL;
	handle error = duckdb_schema_from_arrow(t->connection, &schema, &converted);
	if (converted != NULL)
		duckdb_destroy_arrow_converted_schema(&converted);
	return error;
}

int table_describe(struct table *t, const char *view) { return duckdb_arrow_scan(t->connection, view, &t->stream); }

void table_column(struct table *t, int64_t i, char *name, handle type) {
	if (t->names == NULL) {
		t->names = calloc(t->schema.n_children, sizeof *t->names);
		t->types = calloc(t->schema.n_children, sizeof *t->types);
		t->columns = t->schema.n_children;
	}
	t->names[i] = name;
	t->types[i] = type;
}

void table_free(struct table *t) {
	if (t == NULL)
		return;
	if (t->schema.release != NULL)
		t->schema.release(&t->schema);
	for (int64_t i = 0; i < t->n; i++)
		if (t->batches[i].release != NULL)
			t->batches[i].release(&t->batches[i]);
	for (int64_t i = 0; i < t->columns; i++) {
		free(t->names[i]);
		duckdb_destroy_logical_type(&t->types[i]);
	}
	free(t->names);
	free(t->types);
	free(t->batches);
	free(t);
}

// convert makes a chunk of n rows of a batch, of the columns in source. The room
// for as many arrays and pointers must last as long as the chunk does. It
// returns an error, to be destroyed, or NULL.
static handle convert(struct table *t, struct ArrowArray *batch, int64_t at, int64_t n, const int64_t *source, int64_t columns,
                      handle converted, struct ArrowArray *arrays, struct ArrowArray **pointers, handle *chunk) {
	struct ArrowArray rows = {.length = n, .n_buffers = batch->n_buffers, .buffers = batch->buffers};
	for (int64_t i = 0; i < columns; i++) {
		arrays[i] = *batch->children[source[i]];
		arrays[i].offset += at;
		arrays[i].length = n;
		arrays[i].release = keep_array;
		pointers[i] = &arrays[i];
	}
	rows.n_children = columns;
	rows.children = pointers;
	rows.release = keep_array;
	handle error = duckdb_data_chunk_from_arrow(t->connection, &rows, converted, chunk);
	if (error != NULL && duckdb_error_data_has_error(error))
		return error;
	duckdb_destroy_error_data(&error);
	return NULL;
}

// Preparing a SELECT has told of the types, but for the type of NULL, which is
// INTEGER there, and must not be where there are rows.
static handle exact_types(struct table *t) {
	int64_t b = 0;
	while (b < t->n && t->batches[b].length == 0)
		b++;
	if (b == t->n)
		return NULL;
	struct ArrowSchema schema = t->schema;
	schema.release = keep_schema;
	handle converted = NULL, chunk = NULL;
	handle error = duckdb_schema_from_arrow(t->connection, &schema, &converted);
	if (error != NULL && duckdb_error_data_has_error(error))
		return error;
	duckdb_destroy_error_data(&error);
	int64_t *all = calloc(t->columns, sizeof *all);
	struct ArrowArray *arrays = calloc(t->columns, sizeof *arrays);
	struct ArrowArray **pointers = calloc(t->columns, sizeof *pointers);
	if (all != NULL && arrays != NULL && pointers != NULL) {
		for (int64_t i = 0; i < t->columns; i++)
			all[i] = i;
		error = convert(t, &t->batches[b], 0, 1, all, t->columns, converted, arrays, pointers, &chunk);
	}
	for (int64_t i = 0; chunk != NULL && error == NULL && i < t->columns; i++) {
		duckdb_destroy_logical_type(&t->types[i]);
		t->types[i] = duckdb_vector_get_column_type(duckdb_data_chunk_get_vector(chunk, i));
	}
	if (chunk != NULL)
		duckdb_destroy_data_chunk(&chunk);
	duckdb_destroy_arrow_converted_schema(&converted);
	free(all);
	free(arrays);
	free(pointers);
	return error;
}

static void table_bind(handle info) {
	struct table *t = duckdb_bind_get_extra_info(info);
	for (int64_t i = 0; i < t->columns; i++)
		duckdb_bind_add_result_column(info, t->names[i], t->types[i]);
	duckdb_bind_set_cardinality(info, t->rows, true);
}

// A scan is one reading of the table, of certain columns, by any number of
// threads.
struct scan {
	struct table *table;
	int64_t n;       // columns that are read
	int64_t *source; // the table's column of each
	int64_t *target; // the output's column of each
	int64_t row_id;  // the output's column that numbers rows, or -1
	struct ArrowSchema **fields;
	handle converted; // of these columns

	pthread_mutex_t mu; // of the following: where no thread has been
	int64_t batch;
	int64_t at; // in the batch
	int64_t row;
};

// A part is the part of a scan that one thread does now.
struct part {
	struct ArrowArray *batch;
	int64_t at;
	int64_t left;
	int64_t row; // of at, in the table
	struct ArrowArray *columns;
	struct ArrowArray **children;
};

// part_rows is how much a thread does at a time, as of DuckDB's own tables.
enum { part_rows = 60 * 2048 };

static void scan_free(void *p) {
	struct scan *s = p;
	if (s->converted != NULL)
		duckdb_destroy_arrow_converted_schema(&s->converted);
	pthread_mutex_destroy(&s->mu);
	free(s->source);
	free(s->target);
	free(s->fields);
	free(s);
}

static void scan_init(handle info) {
	struct table *t = duckdb_init_get_extra_info(info);
	uint64_t n = duckdb_init_get_column_count(info);
	struct scan *s = calloc(1, sizeof *s);
	if (s == NULL || pthread_mutex_init(&s->mu, NULL) != 0) {
		free(s);
		duckdb_init_set_error(info, "out of memory");
		return;
	}
	duckdb_init_set_init_data(info, s, scan_free);
	s->table = t;
	s->row_id = -1;
	s->source = calloc(n + 1, sizeof *s->source);
	s->target = calloc(n + 1, sizeof *s->target);
	s->fields = calloc(n + 1, sizeof *s->fields);
	if (s->source == NULL || s->target == NULL || s->fields == NULL) {
		duckdb_init_set_error(info, "out of memory");
		return;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint64_t column = duckdb_init_get_column_index(info, i);
		if (column >= (uint64_t)t->columns) { // not one of the table's
			s->row_id = i;
			continue;
		}
		s->source[s->n] = column;
		s->target[s->n] = i;
		s->fields[s->n++] = t->schema.children[column];
	}
	if (s->n > 0) {
		struct ArrowSchema schema = t->schema;
		schema.n_children = s->n;
		schema.children = s->fields;
		schema.release = keep_schema;
		handle error = duckdb_schema_from_arrow(t->connection, &schema, &s->converted);
		if (error != NULL && duckdb_error_data_has_error(error))
			duckdb_init_set_error(info, duckdb_error_data_message(error));
		duckdb_destroy_error_data(&error);
	}
	duckdb_init_set_max_threads(info, t->rows / part_rows + 1);
}

static void part_free(void *p) {
	struct part *part = p;
	free(part->columns);
	free(part->children);
	free(part);
}

static void part_init(handle info) {
	struct table *t = duckdb_init_get_extra_info(info);
	struct part *p = calloc(1, sizeof *p);
	if (p == NULL) {
		duckdb_init_set_error(info, "out of memory");
		return;
	}
	duckdb_init_set_init_data(info, p, part_free);
	p->columns = calloc(t->columns, sizeof *p->columns);
	p->children = calloc(t->columns, sizeof *p->children);
	if (p->columns == NULL || p->children == NULL)
		duckdb_init_set_error(info, "out of memory");
}

// part_next takes rows that no thread has taken. It returns false at the end.
static bool part_next(struct part *p, struct scan *s) {
	struct table *t = s->table;
	pthread_mutex_lock(&s->mu);
	while (s->batch < t->n && s->at == t->batches[s->batch].length) {
		s->batch++;
		s->at = 0;
	}
	bool more = s->batch < t->n;
	if (more) {
		p->batch = &t->batches[s->batch];
		p->at = s->at;
		p->row = s->row;
		p->left = p->batch->length - s->at;
		if (p->left > part_rows)
			p->left = part_rows;
		s->at += p->left;
		s->row += p->left;
	}
	pthread_mutex_unlock(&s->mu);
	return more;
}

static void scan_rows(handle info, handle output) {
	struct scan *s = duckdb_function_get_init_data(info);
	struct part *p = duckdb_function_get_local_init_data(info);
	if (p->left == 0 && !part_next(p, s)) {
		duckdb_data_chunk_set_size(output, 0);
		return;
	}
	int64_t n = (int64_t)duckdb_vector_size();
	if (n > p->left)
		n = p->left;
	if (s->row_id >= 0) {
		int64_t *ids = duckdb_vector_get_data(duckdb_data_chunk_get_vector(output, s->row_id));
		for (int64_t i = 0; i < n; i++)
			ids[i] = p->row + i;
	}
	if (s->n > 0) {
		handle chunk = NULL;
		handle error = convert(s->table, p->batch, p->at, n, s->source, s->n, s->converted, p->columns, p->children, &chunk);
		if (error != NULL) {
			duckdb_function_set_error(info, duckdb_error_data_message(error));
			duckdb_destroy_error_data(&error);
			return;
		}
		for (int64_t i = 0; i < s->n; i++)
			duckdb_vector_reference_vector(duckdb_data_chunk_get_vector(output, s->target[i]), duckdb_data_chunk_get_vector(chunk, i));
		duckdb_destroy_data_chunk(&chunk);
	}
	duckdb_data_chunk_set_size(output, n);
	p->at += n;
	p->row += n;
	p->left -= n;
}

handle table_register(struct table *t, const char *function) {
	t->rows = 0;
	for (int64_t i = 0; i < t->n; i++)
		t->rows += t->batches[i].length;
	handle error = exact_types(t);
	if (error != NULL)
		return error;
	handle f = duckdb_create_table_function();
	duckdb_table_function_set_name(f, function);
	duckdb_table_function_set_extra_info(f, t, NULL);
	duckdb_table_function_set_bind(f, table_bind);
	duckdb_table_function_set_init(f, scan_init);
	duckdb_table_function_set_local_init(f, part_init);
	duckdb_table_function_set_function(f, scan_rows);
	duckdb_table_function_supports_projection_pushdown(f, true);
	// What it refuses is found out when the function is called.
	duckdb_register_table_function(t->connection, f);
	duckdb_destroy_table_function(&f);
	return NULL;
}
