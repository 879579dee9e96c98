// Command daemon answers as E2B's daemon does to what a launcher asks of it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	flag.Bool("isnotfc", false, "")
	flag.Bool("no-cgroups", false, "")
	port := flag.Int("port", 0, "")
	flag.Parse()
	var settings struct{ AccessToken string }
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	http.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
		if settings.AccessToken != "" || json.NewDecoder(r.Body).Decode(&settings) != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	http.HandleFunc("GET /look", func(w http.ResponseWriter, _ *http.Request) {
		interfaces, _ := net.Interfaces()
		err := os.WriteFile("/run/e2b", nil, 0o600)
		_, _ = fmt.Fprint(w, settings.AccessToken, " ", len(interfaces), " ", os.Getuid(), " ", err)
	})
	log.Fatal(http.ListenAndServe(fmt.Sprintf(":%d", *port), nil))
}
