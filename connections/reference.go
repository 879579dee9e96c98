package connections

import "strings"

// Reference names a connection.
type Reference struct {
	Family string // "mysql"
	Alias  string // "db_movies"; empty: the family's default
}

// ParseReference reads "@family.alias". Only the first dot splits: the alias of
// "@mysql.db.prod" is "db.prod". A text without "@" before it, an empty one
// included, is no reference, which is not an error. Errors are [ErrReference].
func ParseReference(s string) (ref Reference, ok bool, err error) {
	name, ok := strings.CutPrefix(s, "@")
	if !ok {
		return Reference{}, false, nil
	}
	family, alias, ok := strings.Cut(name, ".")
	if !ok {
		return Reference{}, false, errorOf(ErrReference, "Invalid connection reference format: '%s'. Expected '@family.alias'", s)
	}
	if family == "" || alias == "" {
		return Reference{}, false, errorOf(ErrReference, "Invalid connection reference format: '%s'. Family and alias cannot be empty", s)
	}
	return Reference{family, alias}, true, nil
}

// String returns "@family.alias", or "@family" for a family's default, which
// ParseReference does not read: pipelines have no way to write it.
func (r Reference) String() string {
	if r.Alias == "" {
		return "@" + r.Family
	}
	return "@" + r.Family + "." + r.Alias
}

// CheckFamily refuses a connection of another family than a step's component,
// "mysql.extractor", with [ErrFamily].
func CheckFamily(component string, ref Reference) error {
	if family := familyOf(component); family != ref.Family {
		return errorOf(ErrFamily, "Connection family mismatch: step uses %s, ref is %s", family, ref.Family)
	}
	return nil
}

// Default returns the connection of a step that names none: the default of its
// component's family. Components of duckdb and filesystem need none.
func Default(component string) (ref Reference, needed bool) {
	family := familyOf(component)
	switch family {
	case "", "duckdb", "filesystem":
		return Reference{}, false
	}
	return Reference{Family: family}, true
}

// familyOf is the part of a component's name before its first dot.
func familyOf(component string) string {
	family, _, _ := strings.Cut(component, ".")
	return family
}
