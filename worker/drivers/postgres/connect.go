package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

const (
	// cancelWithin is how long the server has to end a query that was cancelled,
	// before the connection is closed under it.
	cancelWithin = 3 * time.Second
	closeWithin  = 5 * time.Second

	connectWithin = 10 * time.Second // to one host, unless the connection says otherwise
)

// fields are those of a connection that the drivers read.
type fields struct {
	DSN         scalar `json:"dsn"`
	PGDSN       scalar `json:"pg_dsn"`
	Host        scalar `json:"host"`
	Port        scalar `json:"port"`
	Database    scalar `json:"database"`
	DBName      scalar `json:"dbname"`
	User        scalar `json:"user"`
	Username    scalar `json:"username"`
	Password    scalar `json:"password"`
	SSLMode     scalar `json:"sslmode"`
	SSLRootCert scalar `json:"sslrootcert"`
	SSLCert     scalar `json:"sslcert"`
	SSLKey      scalar `json:"sslkey"`
	Timeout     scalar `json:"connect_timeout"`
}

// scalar is a text, or a number that stands for one: a port out of the
// environment is "5432", and a password may look like a number.
type scalar string

func (s *scalar) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		*s = ""
	case string:
		*s = scalar(v)
	case float64:
		*s = scalar(b) // as it is written
	default:
		return errors.New("want a text or a number")
	}
	return nil
}

// settings returns what to connect with.
func settings(step *worker.Step) (*pgconn.Config, error) {
	resolved, err := step.ResolvedConnection()
	if err != nil {
		return nil, err
	}
	if resolved == nil {
		return nil, errors.New("a connection is required: name one in the step's config, as connection: \"@postgres.main\"")
	}
	b, err := json.Marshal(resolved)
	if err != nil {
		return nil, errors.New("the connection cannot be read") // the error might quote it
	}
	var f fields
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, errors.New("the fields of the connection are texts and numbers; one is not")
	}
	cfg, err := f.config()
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["client_encoding"] = "UTF8" // else it would be the database's
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "osiris"
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectWithin
	}
	cfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: cancelWithin}
	}
	return cfg, nil
}

func (f *fields) config() (*pgconn.Config, error) {
	dsn := string(f.DSN)
	if dsn == "" {
		dsn = string(f.PGDSN)
	}
	if dsn != "" {
		cfg, err := pgconn.ParseConfig(dsn)
		if err != nil { // it quotes the DSN, less what it takes for the password
			return nil, fmt.Errorf("the connection's dsn cannot be used; want postgres://user:password@host:port/database, with special characters as %%XX, or host=... port=... dbname=...%w", fileError(err))
		}
		if cfg.Password == "" {
			cfg.Password = string(f.Password)
		}
		return cfg, nil
	}
	database := or(f.Database, f.DBName)
	if database == "" {
		return nil, errors.New("'database' is required in the connection")
	}
	port := or(f.Port, "5432")
	for p := range strings.SplitSeq(string(port), ",") {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("the connection's port is %q; want a number up to 65535", port)
		}
	}
	modes := []scalar{"", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
	if !slices.Contains(modes, f.SSLMode) {
		return nil, fmt.Errorf("the connection's sslmode is %q; want one of disable, allow, prefer, require, verify-ca, verify-full", f.SSLMode)
	}
	var b strings.Builder
	set := func(key string, value scalar) {
		// What is given here is not looked for in variables and files.
		quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
		fmt.Fprintf(&b, "%s='%s' ", key, quote.Replace(string(value)))
	}
	set("host", or(f.Host, "localhost"))
	set("port", port)
	set("dbname", database)
	set("user", or(f.User, or(f.Username, "postgres")))
	set("password", f.Password)
	set("passfile", "")
	for key, value := range map[string]scalar{
		"sslmode": f.SSLMode, "sslrootcert": f.SSLRootCert, "sslcert": f.SSLCert, "sslkey": f.SSLKey, "connect_timeout": f.Timeout,
	} {
		if value != "" {
			set(key, value)
		}
	}
	cfg, err := pgconn.ParseConfig(b.String())
	if err != nil {
		return nil, fmt.Errorf("the connection's settings cannot be used; see sslrootcert, sslcert, sslkey, connect_timeout%w", fileError(err))
	}
	return cfg, nil
}

func or(s, otherwise scalar) scalar {
	if s == "" {
		return otherwise
	}
	return s
}

// fileError is the part of an error about settings that quotes none of them but
// the name of a file; its text begins with ": " unless it is empty.
func fileError(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf(": %w", path)
	}
	return errors.New("")
}

// session is a connection with a transaction on it.
type session struct {
	conn   *pgconn.PgConn
	redact *secrets.Redactor
}

// open connects and begins a transaction; prologue is executed in it.
func open(ctx context.Context, step *worker.Step, prologue string) (*session, error) {
	cfg, err := settings(step)
	if err != nil {
		return nil, err
	}
	log := step.Log()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		log.Debug("PostgreSQL: "+n.Message, "severity", n.Severity, "code", n.Code)
	}
	s := &session{redact: secrets.NewRedactor(cfg.Password)}
	failed := func(err error) error {
		return s.explain(ctx, fmt.Sprintf("PostgreSQL connection failed for step %s", step.ID), err)
	}
	if s.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		return nil, failed(err)
	}
	if err := s.exec(ctx, "BEGIN; "+prologue); err != nil {
		s.close()
		return nil, failed(err)
	}
	return s, nil
}

// exec executes statements without results.
func (s *session) exec(ctx context.Context, sql string) error {
	_, err := s.conn.Exec(ctx, sql).ReadAll()
	return err
}

// query returns the rows of a statement as texts; nil is null.
func (s *session) query(ctx context.Context, sql string, args ...string) ([][][]byte, error) {
	values := make([][]byte, len(args))
	for i, a := range args {
		values[i] = []byte(a)
	}
	res := s.conn.ExecParams(ctx, sql, values, nil, nil, nil).Read()
	return res.Rows, res.Err
}

// close ends what runs, rolls back what was not committed, and waits for the
// connection's end.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if s.conn.IsBusy() {
		// The server would notice only with the next row.
		s.conn.CancelRequest(ctx) //nolint:errcheck // the connection is closed anyway
	}
	s.conn.Close(ctx) //nolint:errcheck // nothing is lost with it
	<-s.conn.CleanupDone()
}

// explain says what was being done, and what the server knows about the error.
// Where the context has ended, the error is the context's.
func (s *session) explain(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	text := err.Error()
	switch {
	case errors.As(err, &pg):
		text = serverText(pg)
		if errors.As(err, &connect) {
			text += fmt.Sprintf(" (user %q, database %q)", connect.Config.User, connect.Config.Database)
		}
	}
	if errors.As(err, &connect) {
		err = connect.Unwrap() // it has the whole configuration in it
	}
	return &Error{text: s.redact.String(doing + ": " + text), err: err}
}

// Error is an error of the server, or of the connection to it. Its text holds
// no password; [errors.As] finds the *pgconn.PgError in it, if there is one.
type Error struct {
	text string
	err  error
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the error as the client has it.
func (e *Error) Unwrap() error { return e.err }

// serverText is an error of the server with all that helps.
func serverText(e *pgconn.PgError) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s (SQLSTATE %s)", e.Severity, e.Message, e.Code)
	if e.Position > 0 {
		fmt.Fprintf(&b, " at character %d", e.Position)
	}
	for _, part := range []struct{ name, text string }{{"detail", e.Detail}, {"hint", e.Hint}, {"where", e.Where}} {
		if part.text != "" {
			fmt.Fprintf(&b, "; %s: %s", part.name, clip(part.text))
		}
	}
	return b.String()
}

// clip keeps texts of the server, which may quote values, short.
func clip(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "..."
	}
	return s
}
