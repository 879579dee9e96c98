package secrets_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/osiris-pipelines/remote/secrets"
)

const (
	password = `p@ss w"rd/é&1`
	pem      = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nQm9ndXMga2V5IGZvciBhIHRlc3QsIG5v\nb3RoaW5n\n-----END PRIVATE KEY-----\n"
)

func TestRedact(t *testing.T) {
	long := strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz", 4)
	for _, tt := range []struct {
		name     string
		values   []string
		in, want string
	}{
		{"one", []string{"hunter22"}, "x hunter22 y", "x *** y"},
		{"within a word", []string{"hunter22"}, "xhunter22y", "x***y"},
		{"side by side", []string{"hunter22", "other-one"}, "hunter22other-onehunter22", "***"},
		{"overlapping", []string{"abcdefgh", "efghijkl"}, "abcdefghijkl", "***"},
		{"one in another", []string{"abcdefgh", "cdefgh"}, "cdefgh abcdefgh", "*** ***"},
		{"with blanks around it", []string{"hunter22\n"}, "x hunter22 y", "x *** y"},
		{"of another case", []string{"hunter22"}, "HUNTER22", "HUNTER22"},
		{"not all of it", []string{"hunter22"}, "hunter2 unter22", "hunter2 unter22"},
		{"a long one", []string{long}, "x" + long + "y", "x***y"},
		{"a long one, cut off", []string{long}, long[:100], "***" + long[72:100]},
		{"base64, the bits beside it", []string{"hunter22"}, "eHlodW50ZXIyMnp6", "eH***p6"},
		{"a line of many", []string{"first line of it\nsecond line of it\nshort\n"}, "x second line of it, short", "x ***, short"},
		{"all lines", []string{"first line of it\nsecond line of it\nshort\n"}, "first line of it\nsecond line of it\nshort\n", "***"},
		{"a line of a key", []string{pem}, "at QM9: Qm9ndXMga2V5IGZvciBhIHRlc3QsIG5v", "at QM9: ***"},
		{"a key in JSON", []string{pem}, `{"k":"` + strings.ReplaceAll(pem, "\n", `\n`) + `"}`, `{"k":"***"}`},
		{"the password of a DSN", []string{"postgresql://me:s3cr%40et@db/x"}, "s3cr%40et s3cr@et me", "*** *** me"},
		{"of a MySQL DSN", []string{"me:s3cr:et@tcp(db)/x"}, "s3cr:et me", "*** me"},
		{"of key and value", []string{"host=h password=s3cret0 user=u"}, "s3cret0 user=u", "*** user=u"},
		{"what a header has", []string{"Bearer s3cret-0"}, "x s3cret-0", "x ***"},
		{"members of an account file", []string{`{"type":"x","private_key":"s3cret\nmore","a":{"token":"t0ken-1"},"project":"my-project"}`}, "s3cret\nmore t0ken-1 my-project", "*** *** my-project"},

		{"short: a word", []string{"abc4"}, "abc4 xabc4 abc4x abc4.abc4-_abc4", "*** xabc4 abc4x ***.***-_abc4"},
		{"short: beside a hit", []string{"abc4", "hunter22"}, "abc4hunter22abc4 abc4abc4", "*** abc4abc4"},
		{"short: beside é", []string{"abc4"}, "éabc4", "éabc4"},
		{"short: three", []string{"a!c"}, "a!c xa!c", "*** xa!c"},
		{"shorter", []string{"ab", "a", ""}, "ab a", "ab a"},
		{"few digits", []string{"3306", "12345"}, "3306 12345", "3306 12345"},
		{"six digits", []string{"123456"}, "x1234567", "x***7"},
		{"common words", []string{"true", "null", "localhost", "root", "yes", "Postgres"}, "true null localhost root yes Postgres", "true null localhost root yes Postgres"},
		{"placeholders", []string{"${PASSWORD}", secrets.Masked, secrets.Redacted}, "${PASSWORD} ***MASKED*** ***", "${PASSWORD} ***MASKED*** ***"},

		{"asterisks: made by a hit", []string{"hunter22", "***abc", "def***"}, "hunter22abc defhunter22", "*** ***"},
		{"asterisks: within", []string{"hunter22", "abc***defg"}, "abchunter22defg abc***defg", "abc*** ***"},
		{"asterisks: nothing else", []string{"******", "*a*b**"}, "****** *a*b**", "****** ***"},
		{"asterisks: too little else", []string{"***ab***"}, "***ab***", "***ab***"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := secrets.NewRedactor(tt.values...)
			got := r.String(tt.in)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if again := r.String(got); again != got {
				t.Errorf("not stable: %q", again)
			}
		})
	}
}

// What is told from its looks, in our and the reference's list of leaks, and what
// must not be taken for it.
func TestRedactShapes(t *testing.T) {
	r := secrets.NewRedactor()
	for _, tt := range []struct{ in, want string }{
		{"k eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_1 x", "k *** x"},
		{"eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.e30.x", "***"},
		{"endCursor eyJsYXN0X2lkIjo1fQ==", "endCursor eyJsYXN0X2lkIjo1fQ=="},
		{"AKIAIOSFODNN7EXAMPLE, ASIAIOSFODNN7EXAMPLE", "***, ***"},
		{"AKIA is a prefix, AKIAIOSFODNN7EX not a key", "AKIA is a prefix, AKIAIOSFODNN7EX not a key"},
		{"ghp_abcdefghijklmnopqrstuvwxyz0123456789 ghs_abcdefghijklmnopqrstuvwxyz0123456789", "*** ***"},
		{"github_pat_11ABCDEFG0abcdefghijkl_xyz", "***"},
		{"xoxb-1234567890-abcdefghijkl", "***"},
		{"sk_live_abcdefghijklmnop1234", "***"},
		{"AIzaSyA1234567890abcdefghijklmnopqrstuv", "***"},
		{"npm_abcdefghijklmnopqrstuvwxyz0123456789", "***"},
		{"glpat-abcdefghij1234567890", "***"},
		{"e2b_0123456789abcdef0123456789abcdef01234567", "***"},
		{"shpat_0123456789abcdef0123456789abcdef", "***"},
		{"npm_config_cache ghp_your_token e2b_test sk_live_x", "npm_config_cache ghp_your_token e2b_test sk_live_x"},
		{"a\n" + pem + "b", "a\n***\nb"},
		{strings.ReplaceAll("a\n"+pem+"b", "\n", `\n`), `a\n***\nb`},
		{"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIE [cut]", "***[cut]"},
		{"-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----"},
		{"Authorization: Bearer X", "Authorization: Bearer ***"},
		{"authorization:Basic dXNlcjpwYXNz, x", "authorization:Basic ***, x"},
		{`{"Authorization": "Bearer X"}`, `{"Authorization": "Bearer ***"}`},
		{`{\"Authorization\": \"Token X\"}`, `{\"Authorization\": \"Token ***\"}`},
		{"{'Proxy-Authorization': 'Custom your-api-key'}", "{'Proxy-Authorization': '***'}"},
		{"AUTHORIZATION=X", "AUTHORIZATION=***"},
		{"Authorization: Bearer ***", "Authorization: Bearer ***"},
		{"authorization failed for x; no authorization", "authorization failed for x; no authorization"},
		{"got bearer abcdef0123456789abcdef", "got bearer ***"},
		{"the bearer of this token, bearer authentication-scheme", "the bearer of this token, bearer authentication-scheme"},
		{"X-API-Key: k1", "X-API-Key: ***"},
		{`"x-api-key": "k1"`, `"x-api-key": "***"`},
		{"apikey=k1&x=y api_key='k1'", "apikey=***&x=y api_key='***'"},
		{"https://h/?access_token=abc&page=2", "https://h/?access_token=***&page=2"},
		{"error: password=hunter2 is wrong", "error: password=*** is wrong"},
		{"MYSQL_PASSWORD=hunter2", "MYSQL_PASSWORD=***"},
		{`connect(host='h', password='p4ss', user='u')`, `connect(host='h', password='***', user='u')`},
		{`{"password": "p4ss", "service_role_key":"x"}`, `{"password": "***", "service_role_key":"***"}`},
		{`{"password": null, "password": ""} password=None password=${PW} password=***`, `{"password": null, "password": ""} password=None password=${PW} password=***`},
		{"Access denied for user 'root'@'h' (using password: YES)", "Access denied for user 'root'@'h' (using password: YES)"},
		{"url: postgresql://u:p@h", "url: postgresql://u:***@h"},
		{"mysql://root:pw@host redis://:pw@h", "mysql://root:***@host redis://:***@h"},
		{"root:pw@tcp(127.0.0.1:3306)/db, 'me:pw@unix(/x)/db'", "root:***@tcp(127.0.0.1:3306)/db, 'me:***@unix(/x)/db'"},
		{"https://host:80/a@b https://user@host git@github.com:a/b a://b:${PW}@c f\"pg://{user}:{pw}@{host}\"", "https://host:80/a@b https://user@host git@github.com:a/b a://b:${PW}@c f\"pg://{user}:{pw}@{host}\""},
		{`author=x auth_type: basic primary_key=id tokens_used=3 "key": "df" MY_KEYBOARD=qwerty "token": 7`, `author=x auth_type: basic primary_key=id tokens_used=3 "key": "df" MY_KEYBOARD=qwerty "token": 7`},
	} {
		got := r.String(tt.in)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if again := r.String(got); again != got {
			t.Errorf("%q is not stable: %q", got, again)
		}
	}
}

// Secrets in every encoding, in the middle of text and at its ends.
func TestRedactEncodings(t *testing.T) {
	for _, secret := range []string{password, "hunter22", "!@#$%^&*()", "'\"'\"'\"", `a\b\\c\n`, "00 000", "äöüß", "日本語のパスワード", "😀😀", "a+b/c=d?e", "\x00\x01\x02\x03\x04\x05", "no\xffUTF\xfe8", "(a)(b)(c)", "tab\tnl\nend", "%25%25%25", "a.b-c_d~e"} {
		r := secrets.NewRedactor(secret)
		for name, e := range encodings(secret) {
			for _, around := range [][2]string{{"", ""}, {"x ", " y"}, {"1 ", ","}, {" ", ";"}} {
				got := r.String(around[0] + e + around[1])
				want := around[0] + "***" + around[1]
				if strings.HasPrefix(name, "base64 ") {
					// Characters without bits of the secret stay.
					find := e
					if name != "base64 in URL" {
						find = core(e, int(name[len(name)-2-len(" ")]-'0'), len(secret))
					}
					if strings.Contains(got, find) || !strings.HasPrefix(got, around[0]) || !strings.HasSuffix(got, around[1]) || !strings.Contains(got, "***") {
						t.Errorf("%s of %q: %q became %q", name, secret, e, got)
					}
				} else if got != want {
					t.Errorf("%s of %q: %q became %q", name, secret, e, got)
				}
			}
		}
	}
}

func TestRedactBytes(t *testing.T) {
	r := secrets.NewRedactor("hunter22")
	for _, in := range [][]byte{nil, {}, []byte("a"), []byte("nothing here")} {
		if got := r.Bytes(in); len(got) != len(in) || (got == nil) != (in == nil) || len(in) > 0 && &got[0] != &in[0] {
			t.Errorf("%q became %q, another slice", in, got)
		}
	}
	in := []byte("a hunter22")
	if got := r.Bytes(in); string(got) != "a ***" || string(in) != "a hunter22" {
		t.Errorf("%q became %q", in, got)
	}
	var none *secrets.Redactor
	none.Add("hunter22")
	var out bytes.Buffer
	w := none.Writer(&out)
	if n, err := w.Write(in); n != len(in) || err != nil || out.String() != string(in) {
		t.Errorf("a nil Redactor's Writer: %d, %v, %q", n, err, out.String())
	}
	if err := errors.Join(w.Flush(), w.Close()); err != nil {
		t.Error(err)
	}
	if none.String("password=x1 hunter22") != "password=x1 hunter22" || &none.Bytes(in)[0] != &in[0] || &none.JSON(in)[0] != &in[0] {
		t.Error("a nil Redactor changed something")
	}
}

func TestRedactJSON(t *testing.T) {
	r := secrets.NewRedactor("hunter22", "7654321", "with\"quote", "abc4", "1.5e3")
	for _, tt := range []struct {
		in, want string
		keep     []string
	}{
		{in: `{"b":1.50,"a":"x hunter22","c":[1e3,-0,true,null]}`, want: `{"b":1.50,"a":"x ***","c":[1e3,-0,true,null]}`},
		{in: `{"hunter22": 1, "x": {"y hunter22":2} }`, want: `{"***": 1, "x": {"y ***":2} }`},
		{in: `{"a":"hunter\u00322"}`, want: `{"a":"***"}`},
		{in: `"\nabc4\t"`, want: `"\n***\t"`},
		{in: `{"a":"with\"quote","b":"<\u003c>"}`, want: `{"a":"***","b":"<\u003c>"}`},
		{in: `{"a":"hunter22 <&> \u2028é"}`, want: `{"a":"*** <&> \u2028é"}`},
		{in: `{"a":"{\"b\":\"with\\\"quote\"}"}`, want: `{"a":"{\"b\":\"***\"}"}`},
		{in: `[7654321, 76543210, -7654321, 7654321.0, "7654321"]`, want: `["***", 76543210, -7654321, 7654321.0, "***"]`},
		{in: `[1.5e3]`, want: `[1.5e3]`},
		{in: `{"session":"hunter22","x":"hunter22","y":{"session":"hunter22"}}`, want: `{"session":"hunter22","x":"***","y":{"session":"***"}}`, keep: []string{"session"}},
		{in: ` {"ke\u0065p":["hunter22",{"a":7654321}],"x":7654321}`, want: ` {"ke\u0065p":["hunter22",{"a":7654321}],"x":"***"}`, keep: []string{"keep"}},
		{in: `[{"session":"hunter22"},"session","hunter22"]`, want: `[{"session":"***"},"session","***"]`, keep: []string{"session"}},
		{in: `{"a":"hunter22"`, want: `{"a":"***"`},
		{in: "not \\ hunter22", want: "not \\ ***"},
		{in: `"hunter22"`, want: `"***"`},
		{in: "", want: ""},
		{in: `{"a":"clean","b":"\n\\"}`, want: `{"a":"clean","b":"\n\\"}`},
	} {
		got := r.JSON([]byte(tt.in), tt.keep...)
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, diff)
		}
		if again := r.JSON(got, tt.keep...); !bytes.Equal(again, got) {
			t.Errorf("%s is not stable: %s", got, again)
		}
	}
	doc := []byte(`{"a":"clean","b":"\n\\"}`)
	if got := r.JSON(doc); &got[0] != &doc[0] {
		t.Error("a document without hits was copied")
	}
}

func TestWriter(t *testing.T) {
	r := secrets.NewRedactor("hunter22", password, "abc4")
	var out bytes.Buffer
	w := r.Writer(&out)
	write := func(s string) {
		t.Helper()
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := func(s string) {
		t.Helper()
		if out.String() != s {
			t.Errorf("%q is out, want %q", out.String(), s)
		}
		out.Reset()
	}
	write("a hunter")
	want("")
	write("22 b\n")
	_ = w.Flush()
	want("a *** b\n")

	// A token without end takes no memory, and ends where it ends.
	write("k eyJhbGciOi")
	for range 100 {
		write(strings.Repeat("x", 3000))
		if out.Len() > 10 {
			t.Fatalf("%d bytes are out", out.Len())
		}
	}
	write(" end")
	_ = w.Flush()
	want("k *** end")

	// It goes on over a Flush, as do key blocks.
	write("eyJhbGciOiabcd")
	_ = w.Flush()
	write("efgh.hunter22 x\n")
	_ = w.Flush()
	want("*** x\n")
	for line := range strings.Lines(pem) {
		write(line)
		_ = w.Flush()
	}
	write("x abc4")
	_ = w.Flush()
	write("abc4 abc4\n")
	_ = w.Flush()
	want("***\nx *** ***\n")

	// What is held is bounded.
	text := logText(100_000)
	for rest := text; len(rest) > 0; rest = rest[100:] {
		write(string(rest[:100]))
		if held := len(text) - len(rest) + 100 - out.Len(); held > 4096 {
			t.Fatalf("%d bytes are held", held)
		}
	}
	_ = w.Flush()
	want(string(text))

	r.Add("later-one")
	write("later-one")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	want("***")
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a write after Close")
	}

	failing := r.Writer(failure{})
	_, _ = failing.Write([]byte("x"))
	if err := failing.Flush(); !errors.Is(err, errFailure) {
		t.Errorf("Flush: %v", err)
	}
	if _, err := failing.Write([]byte("x")); !errors.Is(err, errFailure) {
		t.Errorf("Write: %v", err)
	}
}

var errFailure = errors.New("failure")

type failure struct{}

func (failure) Write([]byte) (int, error) { return 0, errFailure }

// Chunks of any size give the same, also for what is long or has no end.
func TestWriterChunks(t *testing.T) {
	r := secrets.NewRedactor("hunter22", password, "abc4", strings.Repeat("long-secret!", 40))
	texts := []string{strings.Repeat("long-secret!", 40), "postgresql://" + strings.Repeat("u", 128) + ":" + strings.Repeat("p", 500) + "@h"}
	for _, s := range append(shapesOfTokens, texts...) {
		for pad := 1000; pad < 5200; pad += 377 {
			all := strings.Repeat(".", pad) + s + strings.Repeat("\n"+s+"hunter22abc4", 5) + strings.Repeat("z", pad)
			want := r.String(all)
			for _, size := range []int{1, 7, 1000, 4096, 4097} {
				var out bytes.Buffer
				w := r.Writer(&out)
				for rest := []byte(all); len(rest) > 0; {
					n := min(size, len(rest))
					_, _ = w.Write(rest[:n])
					rest = rest[n:]
				}
				_ = w.Close()
				if out.String() != want {
					t.Fatalf("%q in pieces of %d, behind %d: %q, as one %q", s, size, pad, cut(out.String(), want), cut(want, out.String()))
				}
			}
		}
	}
}

// It does not matter whether a place is odd or even.
func TestRedactPlaces(t *testing.T) {
	r := secrets.NewRedactor(":Y:)mnopq", "hunter22", password)
	for _, s := range []string{`b\:Y:%29mnopq`, "auThorization: x", "AUTHORization: x", "PASSword=x", "1://u:p@h", "é://u:p@h", "a://é:p@h", `\\:Y:\)mnopq`} {
		want := r.String(s)
		for pad := range 5 {
			dots := strings.Repeat(".", pad)
			if got := r.String(dots + s); got != dots+want {
				t.Errorf("%q behind %d becomes %q, else %q", s, pad, got, want)
			}
		}
	}
}

// Nothing is decided before all is there that it depends on: at every place
// around the end of what is looked at together.
func TestWriterDecides(t *testing.T) {
	r := secrets.NewRedactor("hunter22", "abc4")
	for _, s := range []string{" abc4x ", " abc4hunter22 ", "hunter22abc4 ", " AKIAIOSFODNN7EXAMPLE ", " u:p4ss@tcp(h) ", " a://u:p4@ss@h ", " a://u:p4@ss***@h "} {
		for _, end := range []int{3060, 4096} {
			for pad := end - 30; pad < end+30; pad++ {
				all := strings.Repeat(".", pad) + s + strings.Repeat("z", 2000)
				var out bytes.Buffer
				w := r.Writer(&out)
				for i := range len(all) {
					_, _ = w.Write([]byte{all[i]})
				}
				_ = w.Close()
				if want := r.String(all); out.String() != want {
					t.Fatalf("%q behind %d: %q, as one %q", s, pad, cut(out.String(), want), cut(want, out.String()))
				}
			}
		}
	}
}

func TestRedactorAdd(t *testing.T) {
	var zero secrets.Redactor
	if zero.String("hunter22") != "hunter22" {
		t.Error("the zero Redactor changed something")
	}
	r := secrets.NewRedactor()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				v := fmt.Sprintf("value-%d-%d", i, j)
				r.Add(v)
				if got := r.String("x " + v); got != "x ***" {
					t.Errorf("%q after it was added", got)
				}
			}
		})
	}
	wg.Wait()
	for i := range 4 {
		if got := r.String(fmt.Sprintf("x value-%d-0 value-%d-9", i, i)); got != "x *** ***" {
			t.Errorf("forgotten: %q", got)
		}
	}
}

func ExampleRedactor() {
	r := secrets.NewRedactor("hunter2/x")
	fmt.Println(r.String("login as reader:hunter2/x"))
	fmt.Println(r.String("GET /?p=hunter2%2Fx"))
	fmt.Println(r.String("Authorization: Basic cmVhZGVyOmh1bnRlcjIveA=="))
	// Output:
	// login as reader:***
	// GET /?p=***
	// Authorization: Basic ***
}

func ExampleRedactor_JSON() {
	r := secrets.NewRedactor("hunter2/x")
	fmt.Println(string(r.JSON([]byte(`{"n": 1.0, "error": "no access with hunter2\u002fx", "step": "a"}`), "step")))
	// Output: {"n": 1.0, "error": "no access with ***", "step": "a"}
}

func ExampleRedactor_Writer() {
	r := secrets.NewRedactor("hunter2/x")
	var out bytes.Buffer
	w := r.Writer(&out)
	fmt.Fprint(w, "password is hunt")
	fmt.Fprintln(w, "er2/x, as always")
	_ = w.Flush()
	fmt.Print(out.String())
	// Output: password is ***, as always
}
