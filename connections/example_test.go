package connections_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/secrets"
)

// A file with a connection, whose password is in a variable.
func ExampleFile() {
	file, err := connections.Parse([]byte(`
connections:
  mysql:
    db_movies:
      default: true
      host: mysql.example.internal
      port: 3306
      user: reader
      password: ${MYSQL_PASSWORD}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	file.Lookup = func(name string) (string, bool) { return "correct horse", name == "MYSQL_PASSWORD" }

	ref, _, _ := connections.ParseReference("@mysql.db_movies")
	conn, err := connections.Resolve(context.Background(), file, ref)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(conn.Fields["host"], conn.Fields["port"], conn.Fields["password"])
	fmt.Println(len(conn.Fields["password"].(secrets.Value).Reveal()), "bytes")
	// Output:
	// mysql.example.internal 3306 ***MASKED***
	// 13 bytes
}

// What a dry run may show: no variable is read.
func ExampleFile_Describe() {
	file, err := connections.Parse([]byte(`
connections:
  postgresql:
    default: {dsn: "postgres://etl:${PW}@db.example.com/sales"}
    old: {dsn: "postgres://etl:in-the-file@db.example.com/sales"}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, ref := range file.References() {
		conn, err := file.Describe(ref)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(ref, conn.Fields["dsn"])
	}
	// Output:
	// @postgresql.default postgres://etl:${PW}@db.example.com/sales
	// @postgresql.old postgres://etl:***@db.example.com/sales
}

func ExampleParseReference() {
	for _, s := range []string{"@mysql.db.prod", "mysql", "@mysql"} {
		ref, ok, err := connections.ParseReference(s)
		fmt.Printf("%q %q %t %v\n", ref.Family, ref.Alias, ok, err)
	}
	// Output:
	// "mysql" "db.prod" true <nil>
	// "" "" false <nil>
	// "" "" false Invalid connection reference format: '@mysql'. Expected '@family.alias'
}

// A step without a connection gets its family's default, if it needs one.
func ExampleDefault() {
	for _, component := range []string{"mysql.extractor", "duckdb.processor"} {
		ref, needed := connections.Default(component)
		fmt.Println(component, needed, ref)
	}
	// Output:
	// mysql.extractor true @mysql
	// duckdb.processor false @
}

// A vault that gives out passwords which hold for an hour. What it does not
// know is looked for in the file.
func ExampleFirst() {
	lease := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	vault := connections.ResolverFunc(func(_ context.Context, ref connections.Reference) (*connections.Connection, error) {
		if ref.Family != "mysql" {
			return nil, fmt.Errorf("vault: no %s: %w", ref, connections.ErrNotConfigured)
		}
		return &connections.Connection{
			Fields:    map[string]any{"host": "db.example.com", "user": "v-17", "password": "short-lived"},
			RefreshAt: lease.Add(50 * time.Minute),
		}, nil
	})
	file := connections.Static{"@supabase.main": {"url": "https://example.supabase.co", "key": "service-key"}}

	resolver := connections.First(vault, file)
	for _, ref := range []connections.Reference{{Family: "mysql", Alias: "main"}, {Family: "supabase", Alias: "main"}, {Family: "posthog"}} {
		conn, err := connections.Resolve(context.Background(), resolver, ref)
		if errors.Is(err, connections.ErrNotConfigured) {
			fmt.Println(err)
			continue
		}
		fmt.Println(ref, conn.Fields, conn.RefreshAt.Format(time.TimeOnly))
	}
	// Output:
	// @mysql.main map[host:db.example.com password:***MASKED*** user:v-17] 15:50:00
	// @supabase.main map[key:***MASKED*** url:https://example.supabase.co] 00:00:00
	// vault: no @posthog: connection is not configured; Connection family 'posthog' not found. Available families: supabase
}

// The file where the reference implementation has it, with variables from .env
// files, too. A program leaves Dir and Lookup away.
func ExampleSearch() {
	search := connections.Search{
		DotEnv: true,
		Dir:    "testdata",
		Lookup: func(string) (string, bool) { return "", false },
	}
	_, err := connections.Resolve(context.Background(), search, connections.Reference{Family: "mysql", Alias: "main"})
	if errors.Is(err, connections.ErrNotConfigured) {
		fmt.Println(err)
	}
	// Output:
	// No connections configured. Create osiris_connections.yaml with mysql connections.
}

// All that a log must not show.
func ExampleConnection_Secrets() {
	conn := &connections.Connection{Fields: map[string]any{
		"host": "db", "dsn": "postgres://etl:p%40ss@db/sales", "headers": map[string]any{"Authorization": "Bearer abc-123"},
	}}
	for _, s := range conn.Secrets() {
		fmt.Println(s)
	}
	// Output:
	// Bearer abc-123
	// abc-123
	// p%40ss
	// p@ss
	// postgres://etl:p%40ss@db/sales
}
