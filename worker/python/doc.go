// Package python is for work with Python in a sandbox: so far the private
// indexes that its packages come from. A bridge to drivers in Python belongs
// here, too.
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
