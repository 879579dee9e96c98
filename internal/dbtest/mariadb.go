package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// MariaDB is a running MariaDB server.
type MariaDB struct {
	Host     string
	Port     int
	User     string // with rights to everything
	Password string

	// CA has signed the server's certificate, which is one for the names
	// localhost and 127.0.0.1. It is PEM.
	CA string

	process *process
	count   atomic.Int64
}

// MariaDB returns the server, which runs when it does. Its time zone is
// +05:30, so that who does not set one sees it.
func (s *Servers) MariaDB(tb testing.TB) *MariaDB {
	tb.Helper()
	return s.mariadb.get(tb, startMariaDB)
}

func startMariaDB() (m *MariaDB, err error) {
	server, err := find("mariadbd", "/usr/sbin/mariadbd")
	if err != nil {
		return nil, err
	}
	install, err := find("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	dir, err := tempDir("mariadb")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir) //nolint:errcheck // a temporary directory
			err = fmt.Errorf("MariaDB: %w", err)
		}
	}()

	m = &MariaDB{Host: "127.0.0.1", User: "osiris", Password: password()}
	// Nothing of it needs to last.
	common := []string{"--no-defaults", "--datadir=" + filepath.Join(dir, "data"), "--skip-name-resolve", "--skip-log-bin",
		"--innodb-doublewrite=0", "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"}
	if err := run(dir, install, append(common, "--auth-root-authentication-method=normal", "--skip-test-db")...); err != nil {
		return nil, err
	}
	init := filepath.Join(dir, "init.sql")
	grant := fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';\nGRANT ALL ON *.* TO '%[1]s'@'%%' WITH GRANT OPTION;\n", m.User, m.Password)
	if err := os.WriteFile(init, []byte(grant), 0o600); err != nil {
		return nil, err
	}
	if err := give(init); err != nil {
		return nil, err
	}
	if m.CA, err = certify(dir); err != nil {
		return nil, err
	}
	args := func(port int) []string {
		return append(common, "--bind-address="+m.Host, "--port="+strconv.Itoa(port), "--socket="+filepath.Join(dir, "socket"),
			"--pid-file="+filepath.Join(dir, "pid"), "--init-file="+init, "--default-time-zone=+05:30", "--performance-schema=OFF",
			"--innodb-buffer-pool-size=128M", "--character-set-server=utf8mb4",
			"--ssl-cert="+filepath.Join(dir, certFile), "--ssl-key="+filepath.Join(dir, keyFile))
	}
	m.process, m.Port, err = serve(dir, server, args, func(ctx context.Context, port int) error {
		db, err := m.open(port, "")
		if err != nil {
			return err
		}
		defer db.Close() //nolint:errcheck // only asked
		return db.PingContext(ctx)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (m *MariaDB) open(port int, database string) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.DBName = m.User, m.Password, database
	cfg.Net, cfg.Addr = "tcp", fmt.Sprintf("%s:%d", m.Host, port)
	cfg.MultiStatements = true
	cfg.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// Database makes an empty database, which goes at the end of the test. Its Exec
// takes several statements in one text.
func (m *MariaDB) Database(tb testing.TB) *Database {
	tb.Helper()
	name := fmt.Sprintf("test_%d", m.count.Add(1))
	server, err := m.open(m.Port, "")
	if err != nil {
		tb.Fatal(err)
	}
	(&Database{DB: server}).Exec(tb, "CREATE DATABASE "+name)
	db, err := m.open(m.Port, name)
	if err != nil {
		tb.Fatal(err)
	}
	d := &Database{DB: db, Connection: map[string]any{
		"host": m.Host, "port": m.Port, "database": name, "user": m.User, "password": m.Password,
	}}
	tb.Cleanup(func() {
		closeAll(tb, db)
		(&Database{DB: server}).Exec(tb, "DROP DATABASE "+name)
		closeAll(tb, server)
	})
	return d
}

func closeAll(tb testing.TB, list ...io.Closer) {
	tb.Helper()
	for _, c := range list {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	}
}
