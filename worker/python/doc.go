// Package python lets a worker run drivers in Python: classes with a method run
// over pandas DataFrames, which a host declares for a run. A worker program calls
// [Register], and nothing else.
//
// docs/python.md says what such a driver looks like and what crosses,
// docs/dependencies.md how the packages that it imports are checked and installed.
//
// # Private indexes
//
// An [Index] is parsed from a URL that may hold a user name and a password.
// [Credentials] take both to pip and uv, and to whatever they start, through a
// netrc in memory: no URL that they see, in an argument, the environment, a
// file or a log, holds a secret.
//
//	index, err := python.ParseIndex("https://me:secret@packages.example.com/simple/")
//	...
//	credentials, err := python.NewCredentials(index)
//	...
//	defer credentials.Close()
//	cmd := exec.Command("python3", "-m", "pip", "install", "orders")
//	cmd.Env = append(os.Environ(), credentials.Env()...)
//
// # What it does not protect from
//
// Installing a package from source runs its code, as the same user: that code
// can read the netrc as pip can. A netrc knows hosts, neither ports nor
// schemes: pip and uv send the credentials of a host to every port of it that
// an index leads them to. docs/indexes.md has the details.
package python
