package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/internal/hostname"
	"github.com/osiris-pipelines/remote/secrets"
)

// ErrUnreachable is matched by the error for a host that a run needs and that
// its sandbox cannot reach. Nothing was made. [*HostError] says which and why.
var ErrUnreachable = errors.New("host cannot be reached from the sandbox")

// HostError is a host that a run needs and that its sandbox cannot reach, or
// that cannot be made out. It matches [ErrUnreachable] and [ErrInvalid].
type HostError struct {
	Host       string // as the field has it; empty where that cannot be told without showing more
	Step       string // empty where it is Config that names the host
	Connection string // as "@mysql.main"; empty where the step's config names the host
	Field      string // that names it, as "host"
	Reason     string // why, and what to do
}

func (e *HostError) Error() string {
	var b strings.Builder
	b.WriteString("remote: ")
	if e.Step != "" {
		fmt.Fprintf(&b, "step %q: ", e.Step)
	}
	if e.Connection != "" {
		fmt.Fprintf(&b, "connection %s: ", e.Connection)
	}
	fmt.Fprintf(&b, "%s: %v: ", e.Field, ErrUnreachable)
	if e.Host != "" {
		fmt.Fprintf(&b, "%q ", e.Host)
	}
	return b.String() + e.Reason
}

// Is reports whether target is ErrUnreachable or ErrInvalid.
func (e *HostError) Is(target error) bool { return target == ErrUnreachable || target == ErrInvalid }

// endpoint is a host that something connects to.
type endpoint struct {
	host string // a name in lower case without a dot at its end, or an address
	port int    // zero: not known, or several
	http bool   // HTTP on port 80 or TLS on 443, where E2B looks at the name
}

func (e endpoint) String() string {
	if e.port == 0 {
		return e.host
	}
	return net.JoinHostPort(e.host, strconv.Itoa(e.port))
}

// byName reports whether a rule for the name serves: E2B looks at names on
// ports 80 and 443 alone (infra: pkg/tcpfirewall/proxy.go).
func (e endpoint) byName() bool {
	return e.http || e.port == 0 || e.port == 80 || e.port == 443
}

// byAddress reports whether it takes a rule for the addresses: on other ports,
// and where it is not known that the name can be seen.
func (e endpoint) byAddress() bool { return !e.http }

// errNoHost says that a value names no host, as the path of a file.
var errNoHost = errors.New("no host")

// newEndpoint checks a host. Its error does not quote it.
func newEndpoint(host string, port int, http bool) (endpoint, error) {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if addr, err := netip.ParseAddr(host); err == nil {
		return endpoint{addr.Unmap().WithZone("").String(), port, false}, nil // there is no name to be seen
	}
	if !hostname.Valid(host) {
		return endpoint{}, errors.New("is not the name or address of a host")
	}
	return endpoint{host, port, http}, nil
}

// parseHostPort takes "host", "host:port", and addresses of IPv6 with a port in
// brackets.
func parseHostPort(s string, port int) (endpoint, error) {
	host := strings.TrimSpace(s)
	if _, err := netip.ParseAddr(host); err != nil {
		if h, p, err := net.SplitHostPort(host); err == nil {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil || n == 0 {
				return endpoint{}, errors.New("has a port that is no number up to 65535")
			}
			host, port = h, int(n)
		}
	}
	return newEndpoint(host, port, false)
}

// parseURL takes the URL of a service. One without a scheme is taken for
// HTTPS, as drivers do.
func parseURL(s string) (endpoint, error) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return endpoint{}, errNoHost
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return endpoint{}, errors.New("is not a URL") // its error would quote it
	}
	if u.Scheme == "file" || u.Host == "" {
		return endpoint{}, errNoHost
	}
	port, err := urlPort(u)
	if err != nil {
		return endpoint{}, err
	}
	plain := u.Scheme == "http" || u.Scheme == "ws"
	tls := u.Scheme == "https" || u.Scheme == "wss"
	return newEndpoint(u.Hostname(), port, plain && port == 80 || tls && port == 443)
}

func urlPort(u *url.URL) (int, error) {
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return 0, errors.New("has a port that is no number up to 65535")
		}
		return int(n), nil
	}
	switch u.Scheme {
	case "http", "ws":
		return 80, nil
	case "https", "wss":
		return 443, nil
	}
	return 0, nil
}

// parseDSN takes what databases are named by: a URL, MySQL's
// user:password@tcp(host:port)/, and the lists of names and values of libpq and
// ODBC. Its errors quote nothing, since a part of the password may be taken for
// something else.
func parseDSN(s string) ([]endpoint, error) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "jdbc:")
	if scheme, rest, ok := strings.Cut(s, "://"); ok && !strings.ContainsAny(scheme, "@:/= (") {
		return parseDatabaseURL(scheme, rest)
	}
	name, _, pairs := strings.Cut(s, "=")
	switch {
	case pairs && strings.Contains(s, ";") && !strings.ContainsAny(name, "@/("):
		return parsePairs(semicolonPairs(s))
	case pairs && !strings.ContainsAny(name, "@/(:"):
		kv, err := libpqPairs(s)
		if err != nil {
			return nil, err
		}
		return parsePairs(kv)
	}
	return parseMySQL(s)
}

func parseDatabaseURL(scheme, rest string) ([]endpoint, error) {
	switch {
	case scheme == "http" || scheme == "https":
		e, err := parseURL(scheme + "://" + rest)
		return []endpoint{e}, err
	case scheme == "file" || strings.HasPrefix(scheme, "sqlite") || strings.HasPrefix(scheme, "duckdb"):
		return nil, errNoHost
	case strings.HasSuffix(scheme, "+srv"):
		return nil, errors.New("names its hosts by SRV records, which are not looked up; name them in Config.AllowHosts, and give the database by its hosts")
	}
	end := strings.IndexAny(rest, "/?#;")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	if strings.Contains(tail, "@") {
		// Of a password with a slash in it, half would be taken for the host.
		return nil, errors.New("has an @ behind its host; write those of a password as %40, and its slashes as %2F")
	}
	hosts := authority[strings.LastIndex(authority, "@")+1:]
	kv := make(map[string]string)
	if _, query, ok := strings.Cut(tail, "?"); ok {
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, errors.New("has a query that cannot be read")
		}
		for _, key := range []string{"host", "hostaddr", "port"} { // libpq takes them there, too
			kv[key] = values.Get(key)
		}
	}
	if hosts == "" || strings.HasPrefix(hosts, ":") {
		return parsePairs(kv)
	}
	list, err := parseHostList(hosts, "")
	if err != nil || kv["host"] == "" && kv["hostaddr"] == "" {
		return list, err
	}
	more, err := parsePairs(kv)
	return append(list, more...), err
}

// parseHostList takes hosts with commas between them, and a list of ports that
// belong to them.
func parseHostList(hosts, ports string) ([]endpoint, error) {
	var list []endpoint
	each := strings.Split(ports, ",")
	for i, host := range strings.Split(hosts, ",") {
		host = strings.TrimSpace(host)
		if host == "" || strings.HasPrefix(host, "/") || strings.HasPrefix(strings.ToLower(host), "%2f") || host[0] == '@' {
			continue // a socket of its own machine
		}
		port := 0
		if p := strings.TrimSpace(each[min(i, len(each)-1)]); p != "" {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return nil, errors.New("has a port that is no number up to 65535")
			}
			port = int(n)
		}
		e, err := parseHostPort(host, port)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	if list == nil {
		return nil, errNoHost
	}
	return list, nil
}

// parsePairs takes the names that libpq and ODBC have for hosts and ports.
func parsePairs(kv map[string]string) ([]endpoint, error) {
	if kv["hostaddr"] != "" {
		return parseHostList(kv["hostaddr"], kv["port"])
	}
	for _, key := range []string{"host", "server", "data source", "addr", "address", "network address"} {
		value := kv[key]
		if value == "" {
			continue
		}
		if key != "host" { // ODBC: "tcp:host,1433", "host\instance"
			value = strings.TrimPrefix(value, "tcp:")
			value, _, _ = strings.Cut(value, `\`)
			host, port, ok := strings.Cut(value, ",")
			if !ok {
				port = kv["port"]
			}
			return parseHostList(host, port)
		}
		return parseHostList(value, kv["port"])
	}
	return nil, errNoHost
}

func semicolonPairs(s string) map[string]string {
	kv := make(map[string]string)
	for part := range strings.SplitSeq(s, ";") {
		if name, value, ok := strings.Cut(part, "="); ok {
			kv[strings.ToLower(strings.TrimSpace(name))] = strings.Trim(strings.TrimSpace(value), `{}"'`)
		}
	}
	return kv
}

// libpqPairs takes name=value, with quotes and backslashes as libpq has them.
func libpqPairs(s string) (map[string]string, error) {
	kv := make(map[string]string)
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		name, rest, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errors.New("is no list of names and values")
		}
		rest = strings.TrimLeft(rest, " \t\n")
		var value strings.Builder
		quoted := strings.HasPrefix(rest, "'")
		i := 0
		if quoted {
			i = 1
		}
		for ; i < len(rest); i++ {
			b := rest[i]
			if quoted && b == '\'' || !quoted && (b == ' ' || b == '\t' || b == '\n') {
				break
			}
			if b == '\\' && i+1 < len(rest) {
				i++
				b = rest[i]
			}
			value.WriteByte(b)
		}
		if quoted {
			if i == len(rest) {
				return nil, errors.New("has a quote without an end")
			}
			i++
		}
		kv[strings.ToLower(strings.TrimSpace(name))] = value.String()
		s = rest[i:]
	}
	return kv, nil
}

// parseMySQL takes user:password@protocol(address)/database, as
// github.com/go-sql-driver/mysql does.
func parseMySQL(s string) ([]endpoint, error) {
	slash := strings.LastIndex(s, "/")
	if slash < 0 {
		return nil, errors.New("is none of the forms that are known; name its host in Config.AllowHosts, and give it by the field host")
	}
	head := s[:slash]
	where := head[strings.LastIndex(head, "@")+1:]
	protocol, address, ok := strings.Cut(where, "(")
	if protocol != "" && protocol != "tcp" && protocol != "tcp4" && protocol != "tcp6" {
		if protocol == "unix" {
			return nil, errNoHost
		}
		return nil, errors.New("has a protocol that is neither tcp nor unix")
	}
	address, closed := strings.CutSuffix(address, ")")
	if ok && !closed {
		return nil, errors.New("has a parenthesis that is not closed")
	}
	if address == "" {
		address = "127.0.0.1:3306" // MySQL's
	}
	e, err := parseHostPort(address, 3306)
	return []endpoint{e}, err
}

// foundHost is a host that a field names.
type foundHost struct {
	endpoint
	field string
}

// urlFields and dsnFields are the fields of connections and configs that name
// hosts, in the original's components and connections and elsewhere.
func urlFields() []string {
	return []string{"url", "endpoint", "endpoint_url", "base_url", "api_url", "custom_base_url", "server_url"}
}

func dsnFields() []string {
	return []string{"dsn", "pg_dsn", "connection_string", "connection_url", "database_url", "uri"}
}

// findHosts finds what the fields of a connection, or a config, name. family is
// that of the connection. port is used where there is none. The error is a
// *HostError without the step.
func findHosts(family string, fields map[string]any, port int) ([]foundHost, error) {
	var found []foundHost
	if family == "duckdb" || family == "filesystem" {
		return nil, nil
	}
	text := func(field string) string {
		s, _ := plainText(fields[field])
		return strings.TrimSpace(s)
	}
	var failed *HostError
	add := func(field string, quote bool, list []endpoint, err error) {
		switch {
		case errors.Is(err, errNoHost) || failed != nil:
		case err != nil:
			failed = &HostError{Field: field, Reason: err.Error()}
			if quote {
				failed.Host = clipHost(text(field))
			}
		default:
			for _, e := range list {
				found = append(found, foundHost{e, field})
			}
		}
	}
	name := func(field, host string) {
		e, err := newEndpoint(host, 443, true)
		add(field, true, []endpoint{e}, err)
	}
	for _, field := range urlFields() {
		if s := text(field); s != "" {
			e, err := parseURL(s)
			add(field, false, []endpoint{e}, err)
		}
	}
	for _, field := range dsnFields() {
		if s := text(field); s != "" {
			list, err := parseDSN(s)
			add(field, false, list, err)
		}
	}
	for _, field := range []string{"host", "hostname", "server"} {
		switch s := text(field); {
		case s == "":
		case strings.Contains(s, "://"):
			e, err := parseURL(s)
			add(field, false, []endpoint{e}, err)
		default:
			list, err := parseHostList(s, portText(fields, port))
			add(field, true, list, err)
		}
	}
	if list, ok := fields["hosts"].([]any); ok {
		for _, item := range list {
			if s, ok := plainText(item); ok && s != "" {
				list, err := parseHostList(s, portText(fields, port))
				add("hosts", false, list, err)
			}
		}
	}
	if s := text("shop_domain"); s != "" {
		e, err := parseURL(s)
		add("shop_domain", true, []endpoint{e}, err)
	}
	switch region := text("region"); {
	case family == "snowflake" && text("account") != "" && text("host") == "":
		account := text("account")
		if !strings.HasSuffix(account, ".snowflakecomputing.com") {
			account += ".snowflakecomputing.com"
		}
		name("account", account)
	case family == "supabase" && text("url") == "":
		for _, field := range []string{"project_id", "project_ref"} {
			if id := text(field); id != "" {
				name(field, id+".supabase.co")
			}
		}
	case family == "posthog" && text("custom_base_url") == "":
		if region == "" {
			region = "us"
		}
		if region != "self_hosted" && len(fields) > 0 && fields["project_id"] != nil {
			name("region", region+".posthog.com")
		}
	case family == "s3" && text("endpoint_url") == "" && text("endpoint") == "":
		for _, host := range s3Hosts(text("bucket"), region, text("role_arn") != "") {
			name("bucket", host)
		}
	}
	if failed != nil {
		return nil, failed
	}
	return found, nil
}

// s3Hosts returns the names of S3 for a bucket: in both of its styles, and
// those that lead from the region that a client begins with to the bucket's.
func s3Hosts(bucket, region string, assumesRole bool) []string {
	if bucket == "" {
		return nil
	}
	hosts := []string{"s3.amazonaws.com"}
	if region != "" {
		hosts = []string{"s3." + region + ".amazonaws.com"}
		if assumesRole {
			hosts = append(hosts, "sts."+region+".amazonaws.com")
		}
	} else if assumesRole {
		hosts = append(hosts, "sts.amazonaws.com")
	}
	return append(hosts, bucket+"."+hosts[0])
}

func portText(fields map[string]any, otherwise int) string {
	s, _ := plainText(fields["port"])
	if s = strings.TrimSpace(s); s == "" && otherwise != 0 {
		s = strconv.Itoa(otherwise)
	}
	return s
}

// portOf returns the port that fields give; zero where there is none.
func portOf(fields map[string]any) int {
	n, _ := strconv.ParseUint(portText(fields, 0), 10, 16)
	return int(n)
}

// plainText returns a text, or a number as text.
func plainText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case int:
		return strconv.Itoa(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return strconv.FormatInt(int64(v), 10), true
		}
	}
	return "", false
}

// clipHost is what is shown of a host: short, and without a login before it, or a
// query behind it.
func clipHost(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 { // a password may stand before it
		s = secrets.Redacted + s[i:]
	}
	if i := strings.IndexByte(s, '?'); i >= 0 {
		s = s[:i] + "?" + secrets.Redacted
	}
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// addressFault says why E2B's sandboxes cannot reach an address, or nothing.
// Private networks are denied to them whatever the rules say (infra:
// packages/shared/pkg/sandbox-network/firewall.go), and the rest leads nowhere.
func addressFault(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return "is the sandbox itself there, not this machine"
	case a.IsUnspecified(), a.Is4() && a.As4()[0] == 0:
		return "is no address that can be connected to"
	case a.IsLinkLocalUnicast():
		return "is link-local, which E2B denies to sandboxes"
	case a.IsPrivate():
		return "is private, which E2B denies to sandboxes"
	case netip.MustParsePrefix("100.64.0.0/10").Contains(a):
		return "is shared address space (CGNAT), which E2B denies to sandboxes"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is multicast or broadcast"
	case a.Is6():
		return "is of IPv6, and E2B's sandboxes have only IPv4"
	}
	return ""
}

// nameFault says why a name leads to no host on the internet, or nothing.
func nameFault(name string) string {
	under := func(domain string) bool { return name == domain || strings.HasSuffix(name, "."+domain) }
	switch {
	case under("localhost"):
		return addressFault(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	case under("local"), under("internal"), under("home.arpa"):
		return "is a name of a private network, which sandboxes cannot reach"
	}
	return ""
}
