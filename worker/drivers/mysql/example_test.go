package mysql_test

import (
	"context"
	"fmt"
	"os"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/mysql"
)

// Adds both drivers to those of a worker, which then runs the steps of
// pipelines with them.
func ExampleRegister() {
	drivers := worker.NewRegistry()
	mysql.Register(drivers)
	fmt.Println(drivers.Names())
	// Output: [mysql.extractor mysql.writer]
}

// Copies a table, as a pipeline of two steps does. The worker fills
// "resolved_connection" from the step's connection.
func Example() {
	ctx := context.Background()
	connection := map[string]any{"host": "db.example.com", "database": "shop", "user": "reader", "password": os.Getenv("MYSQL_PASSWORD")}
	extract := &worker.Step{ID: "extract", Config: map[string]any{
		"query":               "SELECT id, email FROM customers",
		"resolved_connection": connection,
	}}
	res, err := new(mysql.Extractor).Run(ctx, extract)
	if err != nil {
		fmt.Println(err)
		return
	}
	out := res.Outputs[worker.DefaultOutput]
	customers, err := worker.ReadDataFrame(out)
	out.Release()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer customers.Release()

	write := &worker.Step{ID: "write", Inputs: map[string]*worker.DataFrame{"df": customers}, Config: map[string]any{
		"table":               "customers_copy",
		"mode":                "upsert",
		"upsert_keys":         []string{"id"},
		"create_if_missing":   true,
		"resolved_connection": connection,
	}}
	if _, err := new(mysql.Writer).Run(ctx, write); err != nil {
		fmt.Println(err)
	}
}
