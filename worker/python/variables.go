package python

import (
	"fmt"
	"slices"
	"strings"

	"github.com/osiris-pipelines/remote/secrets"
)

// defaultIndex is what pip and uv ask where nobody names an index.
const defaultIndex = "https://pypi.org/simple"

// indexesFrom takes the package indexes out of the variables of a run, for
// [NewCredentials]. The rest are the other variables, as "NAME=value", sorted.
//
// Without any there are none: then pip and uv are to ask whom they would ask
// anyway. What is set for one of them counts for both, since both may be used.
// Those that are asked beside the default one come first, as uv has them.
//
// A directory of wheels that is a URL with credentials (PIP_FIND_LINKS) is
// refused. Errors match [ErrIndex], and hold no value.
func indexesFrom(env map[string]string) (indexes []Index, rest []string, err error) {
	var all []Index
	taken := map[string]bool{} // variables
	named := false
	for _, v := range []struct {
		name string
		one  bool
	}{
		{"UV_INDEX", false}, {"UV_EXTRA_INDEX_URL", false}, {"PIP_EXTRA_INDEX_URL", false},
		{"UV_DEFAULT_INDEX", true}, {"UV_INDEX_URL", true}, {"PIP_INDEX_URL", true},
	} {
		taken[v.name] = true
		words := strings.Fields(env[v.name])
		if v.one && len(words) > 1 {
			return nil, nil, fmt.Errorf("%w: %s holds more than one URL", ErrIndex, v.name)
		}
		named = named || v.one && len(words) > 0
		for _, word := range words {
			var name string
			if strings.HasPrefix(v.name, "UV_") {
				name, word = cutIndexName(word)
			}
			index, err := ParseIndex(word)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", v.name, err)
			}
			if name != "" {
				user, password := name+"_USERNAME", name+"_PASSWORD"
				taken[user], taken[password] = true, true
				if index.open() {
					index.Username, index.Password = secrets.New(env[user]), secrets.New(env[password])
				}
			}
			all = append(all, index)
		}
	}
	if len(all) > 0 && !named {
		all = append(all, Index{URL: defaultIndex})
	}
	for _, index := range all {
		if !slices.ContainsFunc(indexes, func(i Index) bool {
			return i.URL == index.URL && i.Username.Equal(index.Username) && i.Password.Equal(index.Password)
		}) {
			indexes = append(indexes, index)
		}
	}
	for _, name := range sortedNames(env) {
		if taken[name] {
			continue
		}
		if name == "PIP_FIND_LINKS" || name == "UV_FIND_LINKS" {
			for _, word := range strings.FieldsFunc(env[name], func(c rune) bool { return c == ' ' || c == ',' || c == '\n' || c == '\t' }) {
				if _, rest, ok := strings.Cut(word, "://"); ok && strings.Contains(rest, "@") {
					return nil, nil, fmt.Errorf("%w: %s holds a URL with a user name or password, which others could see: name it as an index instead", ErrIndex, name)
				}
			}
		}
		rest = append(rest, name+"="+env[name])
	}
	return indexes, rest, nil
}

// cutIndexName takes the name from an index that has one in uv, name=https://...,
// and returns how its variables begin.
func cutIndexName(s string) (prefix, url string) {
	name, url, ok := strings.Cut(s, "=")
	if !ok || !validName(name) || !strings.Contains(url, "://") {
		return "", s
	}
	return "UV_INDEX_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(name)), url
}
