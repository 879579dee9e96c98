// Package connections finds what a pipeline's connection references stand for.
//
// A step names a connection by a reference, "@family.alias", or takes its
// family's default. A [Resolver] turns it into a [Connection], on the host and
// when a run needs it, so that neither a compiled pipeline nor a prepared run
// holds more than the name:
//
//	ref, ok, err := connections.ParseReference("@mysql.db_movies")
//	...
//	conn, err := connections.Resolve(ctx, connections.Search{}, ref)
//	...
//	conn.Fields["host"]     // "mysql.example.internal"
//	conn.Fields["password"] // a secrets.Value: prints as ***MASKED***
//
// [Search] reads osiris_connections.yaml from where the reference
// implementation looks for it, [File] is such a file, [ResolverFunc] asks a
// vault, [First] tries several, and [Static] holds some for tests. What a file
// may contain is in docs/connections.md.
//
// # Secrets
//
// Values that are secret are [secrets.Value], at any depth of Fields. They are
//
//   - everything under a key that names a secret (password, token, api_key,
//     dsn, key, ..., whatever [secrets.Sensitive] says and every key that ends
//     in _password, _secret, _token, _key), and everything below headers,
//     cookies and credentials;
//   - every text that holds credentials, whatever its key: a URL or a DSN with
//     a password, password=... or token=... in a query or a DSN, a private key,
//     a token that is known by its looks;
//   - what a placeholder or a vault has filled in, unless its key is plainly
//     harmless (host, port, database, user, url, region, path, ...) and so are
//     the variable's name and the URL's path, or it is a truth value or a number
//     of less than six digits: to redact these would tear up ordinary text.
//
// Secret values are texts: a number or truth value under a secret key is the
// text that the file has.
//
// # Errors
//
// Messages are those of the reference implementation, to the letter. Programs
// tell them apart by [ErrReference], [ErrFamily], [ErrNotConfigured],
// [UnsetError] and [FileError]. None holds a value.
//
// # Concurrency
//
// The resolvers here keep no state and may be used by several goroutines at
// once.
package connections
