package dbtest

import (
	_ "embed" // for the schema
	"testing"
)

//go:embed movies.sql
var moviesSQL string

// Movies makes a database of MariaDB with a few films in it: the tables actors,
// directors, movies, movie_actors and reviews, of 4 to 8 rows each.
func (s *Servers) Movies(tb testing.TB) *Database {
	tb.Helper()
	d := s.MariaDB(tb).Database(tb)
	d.Exec(tb, moviesSQL)
	return d
}
