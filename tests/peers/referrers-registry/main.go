// An in-memory registry with the referrers API, for the tests.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where to listen")
	certificate := flag.String("cert", "", "PEM certificate; without it plain HTTP")
	key := flag.String("key", "", "PEM key of the certificate")
	flag.Parse()
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening %s\n", listener.Addr())
	server := http.Server{Handler: registry.New(registry.WithReferrersSupport(true))}
	if *certificate != "" {
		log.Fatal(server.ServeTLS(listener, *certificate, *key))
	}
	log.Fatal(server.Serve(listener))
}
