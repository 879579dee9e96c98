package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
)

// Postgres is a running PostgreSQL server.
type Postgres struct {
	Host     string
	Port     int
	User     string // a superuser
	Password string

	process *process
	count   atomic.Int64
}

// Postgres returns the server, which runs when it does. Its time zone is
// +05:30, so that who does not set one sees it.
func (s *Servers) Postgres(tb testing.TB) *Postgres {
	tb.Helper()
	return s.postgres.get(tb, startPostgres)
}

func startPostgres() (p *Postgres, err error) {
	// Debian has the programs of every version in a directory of its own.
	server, err := find("/usr/lib/postgresql/*/bin/postgres", "postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL %w", errMissing)
	}
	if real, err := filepath.EvalSymlinks(server); err == nil {
		server = real
	}
	initdb := filepath.Join(filepath.Dir(server), "initdb")
	dir, err := tempDir("postgres")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir) //nolint:errcheck // a temporary directory
			err = fmt.Errorf("PostgreSQL: %w", err)
		}
	}()

	p = &Postgres{Host: "127.0.0.1", User: "osiris", Password: password()}
	secret, data := filepath.Join(dir, "secret"), filepath.Join(dir, "data")
	if err := os.WriteFile(secret, []byte(p.Password), 0o600); err != nil {
		return nil, err
	}
	if err := give(secret); err != nil {
		return nil, err
	}
	if err := run(dir, initdb, "--pgdata="+data, "--username="+p.User, "--pwfile="+secret, "--auth=md5", // for tests connect often, and SCRAM is made to be slow
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"); err != nil {
		return nil, err
	}
	args := func(port int) []string {
		args := []string{"-D", data, "-p", strconv.Itoa(port), "-k", dir}
		for _, setting := range []string{
			"listen_addresses=" + p.Host, "TimeZone=Asia/Kolkata", "shared_buffers=64MB",
			"fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", // nothing of it needs to last
		} {
			args = append(args, "-c", setting)
		}
		return args
	}
	p.process, p.Port, err = serve(dir, server, args, func(ctx context.Context, port int) error {
		db, err := p.open(port, "postgres")
		if err != nil {
			return err
		}
		defer db.Close() //nolint:errcheck // only asked
		return db.PingContext(ctx)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// end has the server remove its shared memory, which would outlive it when it
// is killed.
func (p *Postgres) end() {
	b, _ := os.ReadFile(filepath.Join(p.process.dir, "data", "postmaster.pid"))
	line, _, _ := strings.Cut(string(b), "\n")
	if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
		if server, err := os.FindProcess(pid); err == nil && server.Signal(syscall.SIGQUIT) == nil {
			select {
			case <-p.process.exit:
			case <-time.After(5 * time.Second):
			}
		}
	}
	p.process.kill()
}

func (p *Postgres) open(port int, database string) (*sql.DB, error) {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(p.User, p.Password), Path: database,
		Host: net.JoinHostPort(p.Host, strconv.Itoa(port)), RawQuery: "sslmode=disable&default_query_exec_mode=simple_protocol",
	}
	return sql.Open("pgx", u.String())
}

// Database makes an empty database, which goes with the server. Its Exec
// takes several statements in one text. options follow CREATE DATABASE name.
func (p *Postgres) Database(tb testing.TB, options ...string) *Database {
	tb.Helper()
	name := fmt.Sprintf("test_%d", p.count.Add(1))
	server, err := p.open(p.Port, "postgres")
	if err != nil {
		tb.Fatal(err)
	}
	create := "CREATE DATABASE " + name
	for _, o := range options {
		create += " " + o
	}
	(&Database{DB: server}).Exec(tb, create)
	closeAll(tb, server)
	db, err := p.open(p.Port, name)
	if err != nil {
		tb.Fatal(err)
	}
	d := &Database{DB: db, Connection: map[string]any{
		"host": p.Host, "port": p.Port, "database": name, "user": p.User, "password": p.Password,
	}}
	tb.Cleanup(func() {
		closeAll(tb, db) // dropping it would take a checkpoint
	})
	return d
}
