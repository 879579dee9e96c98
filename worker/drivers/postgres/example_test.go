package postgres_test

import (
	"context"
	"fmt"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/postgres"
)

// Copies the rows of a query to a table of another database, as a pipeline of
// two steps does.
func Example() {
	registry := worker.NewRegistry()
	postgres.Register(registry)
	fmt.Println(registry.Names())

	ctx := context.Background()
	extract := &worker.Step{ID: "extract", Config: map[string]any{
		"query": "SELECT id, name FROM users",
		"resolved_connection": map[string]any{
			"host": "127.0.0.1", "port": 1, "database": "shop", "user": "reader", "password": "secret",
		},
	}}
	if _, err := new(postgres.Extractor).Run(ctx, extract); err != nil {
		fmt.Println("there is no server here")
	}

	write := &worker.Step{ID: "write", Config: map[string]any{
		"table": "users", "write_mode": "upsert", "primary_key": "id",
		"resolved_connection": map[string]any{"dsn": "postgres://writer:secret@warehouse.example/main?sslmode=verify-full"},
	}}
	if _, err := new(postgres.Writer).Run(ctx, write); err != nil {
		fmt.Println(err)
	}
	// Output:
	// [postgres.extractor postgres.writer]
	// there is no server here
	// postgres.writer requires a table in inputs: no table among the inputs; the step has no inputs
}
