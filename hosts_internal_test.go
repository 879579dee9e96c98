package remote

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/osiris-pipelines/remote/internal/hostname"
)

func TestParseDSN(t *testing.T) {
	tests := []struct {
		dsn  string
		want string // hosts with commas between them, "-" for none, "!" and a part of the error
	}{
		{"user:pw@tcp(db.example.com:3307)/d?parseTime=true", "db.example.com:3307"},
		{"user:p@w:/x@tcp(db.example.com)/d", "db.example.com:3306"},
		{"user@tcp([2001:db8::1]:3306)/d", "[2001:db8::1]:3306"},
		{"user:pw@/d", "127.0.0.1:3306"},
		{"user:pw@unix(/tmp/mysql.sock)/d", "-"},
		{"user:pw@pipe(x)/d", "!neither tcp nor unix"},
		{"user:pw@tcp(db.example.com:3306/d", "!parenthesis"},
		{"just-text", "!none of the forms"},
		{"postgres://u:pw@db.example.com:5433/d?sslmode=require", "db.example.com:5433"},
		{"postgresql://u:p%40w@a.example.com,b.example.com:5433/d", "a.example.com,b.example.com:5433"},
		{"postgresql:///d?host=a.example.com&port=5433", "a.example.com:5433"},
		{"postgresql:///d?host=/var/run/postgresql", "-"},
		{"postgresql://%2Fvar%2Frun/d", "-"},
		{"postgres://u:pw/x@db.example.com/d", "!has an @ behind"},
		{"postgres://u:pw?x@db.example.com/d", "!has an @ behind"},
		{"postgres://u:p@w@db.example.com/d", "db.example.com"},
		{"mysql+pymysql://u:pw@db.example.com/d", "db.example.com"},
		{"mongodb+srv://u:pw@cluster.example.com/d", "!SRV"},
		{"mongodb://u:pw@a.example.com:27017,b.example.com:27018/d", "a.example.com:27017,b.example.com:27018"},
		{"jdbc:sqlserver://db.example.com:1433;databaseName=d;password=x", "db.example.com:1433"},
		{"sqlite:///tmp/x.db", "-"},
		{"https://api.example.com/x", "api.example.com:443"},
		{"host=db.example.com port=5433 password='a b\\'c' dbname=d", "db.example.com:5433"},
		{"host = a.example.com,b.example.com port = 5432,5433", "a.example.com:5432,b.example.com:5433"},
		{"hostaddr=203.0.113.7 host=db.example.com", "203.0.113.7"},
		{"host=/var/run/postgresql dbname=d", "-"},
		{"dbname=d user=u", "-"},
		{"host='db.example.com", "!without an end"},
		{"host=db.example.com port=x", "!no number"},
		{"Server=tcp:db.example.com,1433;Database=d;Password=p@ss;", "db.example.com:1433"},
		{`Driver={ODBC};Server=db.example.com\inst;Port=1434`, "db.example.com:1434"},
	}
	for _, test := range tests {
		t.Run(test.dsn, func(t *testing.T) {
			list, err := parseDSN(test.dsn)
			if want, ok := strings.CutPrefix(test.want, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, error %v, want %q", list, err, want)
				}
				return
			}
			if test.want == "-" {
				if !errors.Is(err, errNoHost) {
					t.Errorf("got %v, error %v", list, err)
				}
				return
			}
			var got []string
			for _, e := range list {
				got = append(got, e.String())
			}
			if text := strings.Join(got, ","); err != nil || text != test.want {
				t.Errorf("got %q, error %v, want %q", text, err, test.want)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	tests := []struct {
		url  string
		want endpoint
		err  bool
	}{
		{"https://API.Example.com./x", endpoint{"api.example.com", 443, true}, false},
		{"http://api.example.com", endpoint{"api.example.com", 80, true}, false},
		{"https://api.example.com:80", endpoint{"api.example.com", 80, false}, false},
		{"http://api.example.com:443", endpoint{"api.example.com", 443, false}, false},
		{"https://api.example.com:8443", endpoint{"api.example.com", 8443, false}, false},
		{"https://u:pw@api.example.com/users/@me", endpoint{"api.example.com", 443, true}, false},
		{"https://203.0.113.7/", endpoint{"203.0.113.7", 443, false}, false},
		{"https://[2001:db8::7]/", endpoint{"2001:db8::7", 443, false}, false},
		{"wss://api.example.com", endpoint{"api.example.com", 443, true}, false},
		{"api.example.com/graphql", endpoint{"api.example.com", 443, true}, false},
		{"redis://cache.example.com", endpoint{"cache.example.com", 0, false}, false},
		{"./data", endpoint{}, true},
		{"file:///x", endpoint{}, true},
		{"https://a b", endpoint{}, true},
		{"https://10.1/", endpoint{}, true},
		{"https://api.example.com:0/", endpoint{}, true},
	}
	for _, test := range tests {
		t.Run(test.url, func(t *testing.T) {
			got, err := parseURL(test.url)
			if (err != nil) != test.err {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(endpoint{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAddressFault(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "2001:db8::1", "::ffff:10.0.0.1",
	} {
		if addressFault(netip.MustParseAddr(a)) == "" {
			t.Errorf("%s is no fault", a)
		}
	}
	for _, a := range []string{"8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1", "203.0.113.7", "::ffff:203.0.113.7"} {
		if why := addressFault(netip.MustParseAddr(a)); why != "" {
			t.Errorf("%s %s", a, why)
		}
	}
}

// FuzzParseDSN holds what comes out of any text to be hosts, and errors to
// quote nothing of it.
func FuzzParseDSN(f *testing.F) {
	for _, s := range []string{
		"user:pw@tcp(db.example.com:3307)/d", "postgres://u:pw@a,b:5/d?host=c", "host='a b' port=1", "Server=tcp:a,1;", "jdbc:x://y",
		"host=", "=;", "a=\\", "://", "@(", "x://[::1]:5/", "mongodb+srv://x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseDSN(s)
		if err != nil {
			if len(s) > 30 && strings.Contains(err.Error(), s) {
				t.Errorf("the error quotes %q: %v", s, err)
			}
			return
		}
		for _, e := range list {
			if _, bad := netip.ParseAddr(e.host); bad != nil && !hostname.Valid(e.host) {
				t.Errorf("%q has the host %q", s, e.host)
			}
			if e.port < 0 || e.port > 65535 {
				t.Errorf("%q has the port %d", s, e.port)
			}
		}
	})
}
