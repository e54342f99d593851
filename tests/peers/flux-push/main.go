// Pushes a folder as `flux push artifact` does, by the library of flux. The program flux itself
// can't be built from the module proxy, whose archive lacks the manifests that it embeds.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/fluxcd/pkg/oci"
	"github.com/google/go-containerregistry/pkg/crane"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: flux-push REFERENCE FOLDER")
	}
	client := oci.NewClient([]crane.Option{crane.Insecure})
	metadata := oci.Metadata{
		Created:  "1970-01-01T00:00:00Z",
		Source:   "https://git.example/acme/policies",
		Revision: "main@sha1:0000000000000000000000000000000000000000",
	}
	digest, err := client.Push(context.Background(), os.Args[1], os.Args[2], oci.WithPushMetadata(metadata))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(digest)
}
