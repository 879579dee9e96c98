package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/osiris-pipelines/remote/worker"
)

// endpoint returns where a connection's fields say that the server is.
func endpoint(f *fields) (network, address string) {
	if socket := f.text("unix_socket"); socket != "" {
		return "unix", socket
	}
	host := f.text("host")
	if host == "" {
		host = "localhost"
	}
	return "tcp", net.JoinHostPort(host, strconv.FormatInt(f.integer("port", 3306, 1, 65535), 10))
}

// hosts returns the server of a config's connection.
func hosts(config map[string]any) ([]string, error) {
	fields := &fields{what: "connection field"}
	fields.values, _ = config["resolved_connection"].(map[string]any)
	if len(fields.values) == 0 {
		return nil, nil // Run says what is missing
	}
	network, address := endpoint(fields)
	if fields.err != nil || network != "tcp" {
		return nil, fields.err
	}
	return []string{address}, nil
}

// clientConfig makes a client's config of the fields of a step's connection.
func clientConfig(step *worker.Step) (*mysql.Config, error) {
	values, err := step.ResolvedConnection()
	if err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, stepError(step, "'resolved_connection' is required; name a connection in the step's config")
	}
	f := &fields{what: "connection field", values: values}
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr = endpoint(f)
	cfg.DBName = f.text("database", "db")
	if cfg.DBName == "" {
		return nil, stepError(step, "'database' is required in connection")
	}
	if cfg.User = f.text("user", "username"); cfg.User == "" {
		cfg.User = "root"
	}
	cfg.Passwd = f.text("password")
	cfg.Timeout = time.Duration(f.integer("connect_timeout", 10, 1, 86400)) * time.Second
	cfg.TLS, cfg.AllowFallbackToPlaintext, err = encryption(step, f)
	if f.err != nil {
		return nil, f.err
	}
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		if cfg.TLS.ServerName, _, err = net.SplitHostPort(cfg.Addr); err != nil {
			cfg.TLS.ServerName = "localhost"
		}
	}
	cfg.MaxAllowedPacket = 0 // as the server allows
	cfg.InterpolateParams = true
	cfg.Logger = clientLog{step.Log()}
	// Texts come and go as UTF-8, whatever the tables and the server are set to.
	return cfg, cfg.Apply(mysql.Charset("utf8mb4", ""))
}

// The ways to encrypt, by the names that MySQL's programs have for them.
const (
	tlsDisabled  = "disabled"
	tlsPreferred = "preferred" // where the server can; its certificate does not matter
	tlsRequired  = "required"  // its certificate does not matter
	tlsVerifyCA  = "verify_ca"
	tlsVerify    = "verify_identity"
)

// encryption returns how to encrypt a connection; nil means not at all. It takes
// the names that MySQL's programs, PyMySQL and this client have for that.
func encryption(step *worker.Step, f *fields) (config *tls.Config, fallback bool, err error) {
	files := *f // ca, cert and key, of "ssl" or with a prefix
	prefix := "ssl_"
	mode := ""
	switch v := f.values["ssl"].(type) {
	case map[string]any:
		if len(v) > 0 {
			files, prefix, mode = fields{what: `connection field "ssl":`, values: v}, "", tlsRequired
			if on, ok := files.flag("check_hostname"); ok && !on && files.text("ca") != "" {
				mode = tlsVerifyCA
			}
		}
	case nil:
	default:
		mode = tlsDisabled
		if on, _ := f.flag("ssl"); on {
			mode = tlsRequired
		}
	}
	switch f.oneOf("", []string{"true", "false", "skip-verify", tlsPreferred}, "tls") {
	case "true":
		mode = tlsVerify
	case "false":
		mode = tlsDisabled
	case "skip-verify":
		mode = tlsRequired
	case tlsPreferred:
		mode = tlsPreferred
	}
	ca, cert, key := files.text(prefix+"ca"), files.text(prefix+"cert"), files.text(prefix+"key")
	private := files.text(prefix + "private_key") // a name that is known for a secret's
	if ca != "" && mode != tlsVerifyCA {
		mode = tlsVerify
		if on, ok := f.flag("ssl_verify_identity"); ok && !on {
			mode = tlsVerifyCA
		}
	}
	if off, _ := f.flag("ssl_disabled"); off {
		mode = tlsDisabled
	}
	modes := []string{tlsDisabled, tlsPreferred, tlsRequired, tlsVerifyCA, tlsVerify}
	mode = f.oneOf(mode, modes, "ssl_mode", "sslmode")
	if files.err != nil {
		return nil, false, files.err
	}
	switch mode {
	case tlsDisabled:
		return nil, false, nil
	case "":
		mode = tlsPreferred
	}
	config = &tls.Config{InsecureSkipVerify: mode != tlsVerify}
	if ca != "" {
		pem, err := readPEM(step, prefix+"ca", ca)
		if err != nil {
			return nil, false, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, false, fmt.Errorf("connection field %q: there is no certificate in it", prefix+"ca")
		}
	}
	if cert != "" || key != "" || private != "" {
		certPEM, err := readPEM(step, prefix+"cert", cert)
		if err != nil {
			return nil, false, err
		}
		if strings.Contains(key, "-----BEGIN") {
			return nil, false, fmt.Errorf("connection field %q: want the name of a file; the key itself may stand in %q, which is known for a secret", prefix+"key", prefix+"private_key")
		}
		keyPEM := []byte(private)
		if private == "" {
			if keyPEM, err = readPEM(step, prefix+"key", key); err != nil {
				return nil, false, err
			}
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			return nil, false, fmt.Errorf("connection fields %q and %q: %w", prefix+"cert", prefix+"key", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if mode == tlsVerifyCA {
		roots := config.RootCAs
		config.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
	}
	return config, mode == tlsPreferred, nil
}

// verifyChain checks a server's certificate, whatever the name in it.
func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	others := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		others.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others})
	return err
}

// readPEM takes PEM as it stands, or the name of a file of it.
func readPEM(step *worker.Step, field, value string) ([]byte, error) {
	if strings.Contains(value, "-----BEGIN") {
		return []byte(value), nil
	}
	if value == "" {
		return nil, fmt.Errorf("connection field %q is missing", field)
	}
	f, err := step.Open(value)
	if err != nil {
		return nil, fmt.Errorf("connection field %q: %w; the text of a certificate may stand there instead of its file's name", field, err)
	}
	defer f.Close() //nolint:errcheck // only read from
	pem, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("connection field %q: %w", field, err)
	}
	return pem, nil
}

// clientLog takes what the client library would print.
type clientLog struct{ log *slog.Logger }

func (l clientLog) Print(v ...any) { l.log.Debug("mysql client", "message", fmt.Sprint(v...)) }

// killTimeout bounds how long a cancelled query is killed.
const killTimeout = 2 * time.Second

// session is a connection to a server. Once its context is done it is closed,
// and what it was doing on the server is killed there.
type session struct {
	conn      driver.Conn
	connector driver.Connector
	killer    driver.Connector // for kill
	ctx       context.Context
	cancel    context.CancelFunc
	id        []string // the connection's, and what tells the server from others
	unwatch   func() bool
	killed    chan struct{}
}

// identify asks for the id of a connection and for its server.
const (
	identify        = "SELECT CONNECTION_ID(), @@hostname, @@port, @@server_id"
	identityColumns = 4
)

// connect opens a session with the server of a step's connection. settings are
// session variables. The caller must close it.
func connect(ctx context.Context, step *worker.Step, settings map[string]string) (*session, error) {
	cfg, err := clientConfig(step)
	if err != nil {
		return nil, err
	}
	cfg.Params = settings
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, stepError(step, err.Error())
	}
	// It need not ask for the size of packets. Where a server answers that oddly
	// the client panics: a step may, but not what stops one.
	cfg.MaxAllowedPacket, cfg.Params = 1<<20, nil
	killer, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, stepError(step, err.Error())
	}
	s := &session{connector: connector, killer: killer, killed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(ctx)
	if err := s.open(cfg.Timeout); err != nil {
		s.cancel()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("MySQL connection failed for step %s: %w", step.ID, err)
	}
	s.unwatch = context.AfterFunc(s.ctx, s.kill)
	return s, nil
}

func (s *session) open(timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(s.ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	conn, err := s.connector.Connect(ctx)
	if err == nil {
		s.conn = conn
		var rows [][]string
		rows, err = ask(ctx, conn, identify)
		if err == nil && (len(rows) != 1 || len(rows[0]) != identityColumns) {
			err = errors.New("the server does not tell who it is")
		}
		if err == nil {
			s.id = rows[0]
			return nil
		}
		conn.Close() //nolint:errcheck // err counts
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// kill ends the session on the server: that does not notice the end of a
// connection while it computes. It looks first whether it talks to the same
// server, as there may be several behind one name.
func (s *session) kill() {
	defer close(s.killed)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), killTimeout)
	defer cancel()
	conn, err := s.killer.Connect(ctx)
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // only asked
	rows, err := ask(ctx, conn, identify)
	if err != nil || len(rows) != 1 || len(rows[0]) != len(s.id) {
		return
	}
	for i, own := range s.id {
		if i > 0 && rows[0][i] != own {
			return
		}
	}
	conn.(driver.ExecerContext).ExecContext(ctx, "KILL "+s.id[0], nil) //nolint:errcheck // it may have ended
}

// abandon closes a session whose query is not at its end.
func (s *session) abandon() {
	s.cancel()
	<-s.killed
	s.conn.Close() //nolint:errcheck // it is closed
}

// close closes a session that has nothing left to do.
func (s *session) close() {
	// Where the context is done kill is about to run, and must: what was asked
	// may have failed for no other reason.
	if s.ctx.Err() != nil || !s.unwatch() {
		<-s.killed
	}
	s.conn.Close() //nolint:errcheck // what was asked has been answered
	s.cancel()
}

// exec runs a statement and returns how many rows it has changed.
func (s *session) exec(query string) (int64, error) {
	res, err := s.conn.(driver.ExecerContext).ExecContext(s.ctx, query, nil)
	if err != nil {
		return 0, s.explain(err)
	}
	return res.RowsAffected()
}

// ask returns the rows of a small query.
func (s *session) ask(query string, args ...string) ([][]string, error) {
	rows, err := ask(s.ctx, s.conn, query, args...)
	return rows, s.explain(err)
}

// explain returns the context's error where that is why another one came about.
func (s *session) explain(err error) error {
	if err != nil && s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) {
		return errors.New("the connection to the server was lost")
	}
	return err
}

func ask(ctx context.Context, conn driver.Conn, query string, args ...string) ([][]string, error) {
	values := make([]driver.NamedValue, len(args))
	for i, a := range args {
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, query, values)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // read to its end
	var all [][]string
	dest := make([]driver.Value, len(rows.Columns()))
	for {
		err := rows.Next(dest)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		row := make([]string, len(dest))
		for i, v := range dest {
			switch v := v.(type) {
			case nil:
			case []byte:
				row[i] = string(v)
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		all = append(all, row)
	}
}
