package secrets_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/osiris-pipelines/remote/secrets"
)

const sentinel = "s3ntinel-value"

type holder struct {
	Open   secrets.Value
	Ptr    *secrets.Value
	hidden secrets.Value
	ptr    *secrets.Value
	inner  struct{ deep []secrets.Value }
	byName map[string]secrets.Value
	any    any
}

func newHolder() holder {
	v := secrets.New(sentinel)
	h := holder{Open: v, Ptr: &v, hidden: v, ptr: &v, byName: map[string]secrets.Value{"a": v}, any: v}
	h.inner.deep = []secrets.Value{v}
	return h
}

// Whatever prints, logs or encodes a value, in whatever holds it, does not show it.
func TestValueIsNeverShown(t *testing.T) {
	v := secrets.New(sentinel)
	h := newHolder()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%T", "%p", "%c", "%e", "%U", "%b", "%o", "%w", "%10.3v", "%-20s|", "% x", "%#x"} {
		for _, a := range []any{v, &v, h, &h, []secrets.Value{v}, map[string]secrets.Value{"k": v}, []any{h}, map[string]any{"k": &h}, struct{ v secrets.Value }{v}} {
			fmt.Fprintf(&out, verb+"\n", a) //nolint: the verbs do not fit
		}
	}
	fmt.Fprintln(&out, v, &v, h, &h)
	fmt.Fprintln(&out, fmt.Errorf("no: %w, %v", errors.New(v.String()), h))
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		l := slog.New(handler)
		l.Info("x", "v", v, "p", &v, "h", h, "ph", &h, "m", map[string]any{"k": v}, slog.Group("g", "v", v))
		l.With("v", v, "h", h).Error("y")
	}
	for _, a := range []any{v, &v, map[string]any{"k": v}, struct{ V secrets.Value }{v}, struct {
		V *secrets.Value `json:",omitempty" xml:",attr" yaml:",omitempty"`
	}{&v}} {
		if b, err := json.Marshal(a); err == nil {
			out.Write(b)
		} else {
			t.Error(err)
		}
		if b, err := yaml.Marshal(a); err == nil {
			out.Write(b)
		} else {
			t.Error(err)
		}
		b, err := xml.Marshal(a)
		out.Write(b)
		fmt.Fprintln(&out, err)
		fmt.Fprintln(&out, gob.NewEncoder(&out).Encode(a))
	}
	fmt.Fprintln(&out, template.Must(template.New("").Parse("{{.}} {{.Open}} {{printf `%#v %q` .Open .}} {{js .Open}}")).Execute(&out, h))
	fmt.Fprintln(&out, cmp.Diff(h.Open, secrets.New("another")))
	fmt.Fprintln(&out, cmp.Diff(map[string]secrets.Value{"a": v}, map[string]secrets.Value{"a": secrets.New("b")}))
	fmt.Fprintln(&out, cmp.Diff(h, holder{}, cmp.AllowUnexported(holder{}, struct{ deep []secrets.Value }{})))
	for name, e := range encodings(sentinel) {
		if strings.Contains(out.String(), e) {
			t.Errorf("shown, as %s", name)
		}
	}
	// Some of these escape what stands for it, none leave it out.
	if n := strings.Count(out.String(), "MASKED"); n < 100 {
		t.Errorf("%d masks", n)
	}
}

func TestValue(t *testing.T) {
	v := secrets.New("a")
	if v.Reveal() != "a" || v.IsZero() || !v.Equal(secrets.New("a")) || v.Equal(secrets.New("b")) || v.Equal(secrets.Value{}) {
		t.Error("a value does not hold what it was made of")
	}
	var zero secrets.Value
	if zero.Reveal() != "" || !zero.IsZero() || !zero.Equal(secrets.New("")) || !secrets.New("").IsZero() {
		t.Error("the zero value is not the empty secret")
	}
	for verb, want := range map[string]string{"%v": "***MASKED***", "%s": "***MASKED***", "%q": `"***MASKED***"`, "%#v": `"***MASKED***"`, "%x": "***MASKED***", "%d": "***MASKED***"} {
		if got := fmt.Sprintf(verb, v); got != want {
			t.Errorf("%s gives %s", verb, got)
		}
	}
	if b, err := json.Marshal(map[string]any{"v": v, "zero": zero}); err != nil || string(b) != `{"v":"***MASKED***","zero":"***MASKED***"}` {
		t.Errorf("JSON: %s, %v", b, err)
	}
	var in struct{ A, B, C secrets.Value }
	if err := json.Unmarshal([]byte(`{"A":"x\u0041","B":null}`), &in); err != nil || in.A.Reveal() != "xA" || !in.B.IsZero() || !in.C.IsZero() {
		t.Errorf("from JSON: %q, %v", in.A.Reveal(), err)
	}
	if err := yaml.Unmarshal([]byte("a: y\nb: 12\n"), &in); err != nil || in.A.Reveal() != "y" || in.B.Reveal() != "12" {
		t.Errorf("from YAML: %q, %q, %v", in.A.Reveal(), in.B.Reveal(), err)
	}
	err := json.Unmarshal([]byte(`{"A":987654321}`), &in)
	if err == nil || strings.Contains(err.Error(), "987654321") {
		t.Errorf("the error for a number: %v", err)
	}
}

func ExampleValue() {
	type options struct{ password secrets.Value }
	o := options{password: secrets.New("hunter2")}
	fmt.Println(o.password, len(o.password.Reveal()))
	b, _ := json.Marshal(map[string]any{"password": o.password})
	fmt.Println(string(b))
	// Output:
	// ***MASKED*** 7
	// {"password":"***MASKED***"}
}
