package connections_test

import (
	"errors"
	"testing"

	"github.com/osiris-pipelines/remote/connections"
)

func TestParseReference(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want connections.Reference
		ok   bool
		err  string
	}{
		{"@mysql.primary", connections.Reference{Family: "mysql", Alias: "primary"}, true, ""},
		{"@mysql.db.prod", connections.Reference{Family: "mysql", Alias: "db.prod"}, true, ""},
		{"@my-sql.db_movies-2", connections.Reference{Family: "my-sql", Alias: "db_movies-2"}, true, ""},
		{"@a..", connections.Reference{Family: "a", Alias: "."}, true, ""},
		{"", connections.Reference{}, false, ""},
		{"mysql.primary", connections.Reference{}, false, ""},
		{" @mysql.primary", connections.Reference{}, false, ""},
		{"@mysql", connections.Reference{}, false, "Invalid connection reference format: '@mysql'. Expected '@family.alias'"},
		{"@", connections.Reference{}, false, "Invalid connection reference format: '@'. Expected '@family.alias'"},
		{"@.primary", connections.Reference{}, false, "Invalid connection reference format: '@.primary'. Family and alias cannot be empty"},
		{"@mysql.", connections.Reference{}, false, "Invalid connection reference format: '@mysql.'. Family and alias cannot be empty"},
		{"@.", connections.Reference{}, false, "Invalid connection reference format: '@.'. Family and alias cannot be empty"},
	} {
		got, ok, err := connections.ParseReference(tc.in)
		if got != tc.want || ok != tc.ok || text(err) != tc.err {
			t.Errorf("%q: %v, %t, %v", tc.in, got, ok, err)
		}
		if err != nil && !errors.Is(err, connections.ErrReference) {
			t.Errorf("%q: the error is no ErrReference", tc.in)
		}
		if ok && got.String() != tc.in {
			t.Errorf("%q reads back as %s", tc.in, got)
		}
	}
	if got := (connections.Reference{Family: "mysql"}).String(); got != "@mysql" {
		t.Errorf("a default is %s", got)
	}
}

func TestCheckFamily(t *testing.T) {
	for _, tc := range []struct {
		component, family string
		err               string
	}{
		{"mysql.extractor", "mysql", ""},
		{"mysql", "mysql", ""},
		{"filesystem.csv_extractor", "filesystem", ""},
		{"mysql.extractor", "supabase", "Connection family mismatch: step uses mysql, ref is supabase"},
		{"mysqlx.extractor", "mysql", "Connection family mismatch: step uses mysqlx, ref is mysql"},
		{"duckdb.processor", "mysql", "Connection family mismatch: step uses duckdb, ref is mysql"},
	} {
		err := connections.CheckFamily(tc.component, connections.Reference{Family: tc.family, Alias: "a"})
		if text(err) != tc.err || err != nil && !errors.Is(err, connections.ErrFamily) {
			t.Errorf("%s with %s: %v", tc.component, tc.family, err)
		}
	}
}

func TestDefault(t *testing.T) {
	for component, family := range map[string]string{
		"mysql.extractor":          "mysql",
		"graphql.extractor":        "graphql",
		"duckdbs.processor":        "duckdbs",
		"duckdb.processor":         "",
		"filesystem.csv_extractor": "",
		"duckdb":                   "",
		"":                         "",
	} {
		ref, needed := connections.Default(component)
		if want := (connections.Reference{Family: family}); ref != want || needed != (family != "") {
			t.Errorf("%s: %v, %t", component, ref, needed)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"", "@", "@a", "@a.b", "@a.b.c", "a.b", "@.", "@é.\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, ok, err := connections.ParseReference(s)
		switch {
		case ok && (err != nil || ref.String() != s || ref.Family == "" || ref.Alias == ""):
			t.Fatalf("%q: %v, %v", s, ref, err)
		case !ok && ref != connections.Reference{}:
			t.Fatalf("%q is no reference, but %v", s, ref)
		}
	})
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
