// What a private Sigstore stands on, for the tests: Trillian's log server and sequencer over
// its storage in memory, with a tree for a CT log in it, and a timestamp authority with keys
// of the moment. Both are libraries of the programs that carry their names, without the
// database that one of them wants and the fixed port that the other one takes.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/extension"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/monitoring"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/server"
	"github.com/google/trillian/server/admin"
	"github.com/google/trillian/server/interceptor"
	"github.com/google/trillian/storage/memory"
	"github.com/google/trillian/util/clock"
	"github.com/google/trillian/util/election2"
	timestamp "github.com/sigstore/timestamp-authority/v2/pkg/server"
	"github.com/spf13/viper"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/klog/v2"
)

func main() {
	// Trillian warns of every batch with nothing in it.
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	ctx := context.Background()
	serveTrillian(ctx)
	serveTimestamps()
}

func serveTrillian(ctx context.Context) {
	trees := memory.NewTreeStorage()
	registry := extension.Registry{
		AdminStorage:    memory.NewAdminStorage(trees),
		LogStorage:      memory.NewLogStorage(trees, nil),
		QuotaManager:    quota.Noop(),
		ElectionFactory: election2.NoopFactory{},
		MetricFactory:   monitoring.InertMetricFactory{},
	}
	admins := admin.New(registry, nil)
	logs := server.NewTrillianLogRPCServer(registry, clock.System)
	// Rekor makes its tree by itself.
	tree, err := admins.CreateTree(ctx, &trillian.CreateTreeRequest{Tree: &trillian.Tree{
		TreeState:       trillian.TreeState_ACTIVE,
		TreeType:        trillian.TreeType_LOG,
		MaxRootDuration: durationpb.New(time.Hour),
	}})
	must(err)
	_, err = logs.InitLog(ctx, &trillian.InitLogRequest{LogId: tree.TreeId})
	must(err)

	sequencers := trillianlog.NewOperationManager(trillianlog.OperationInfo{
		Registry:    registry,
		BatchSize:   1000,
		NumWorkers:  2,
		RunInterval: 50 * time.Millisecond,
		TimeSource:  clock.System,
	}, trillianlog.NewSequencerManager(registry, 0))
	go sequencers.OperationLoop(ctx)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	rpc := grpc.NewServer(grpc.UnaryInterceptor(interceptor.ErrorWrapper))
	trillian.RegisterTrillianAdminServer(rpc, admins)
	trillian.RegisterTrillianLogServer(rpc, logs)
	go func() { log.Fatal(rpc.Serve(listener)) }()
	fmt.Printf("trillian %s tree %d\n", listener.Addr(), tree.TreeId)
}

func serveTimestamps() {
	viper.Set("timestamp-signer", "memory")
	viper.Set("timestamp-signer-hash", "sha256")
	viper.Set("default-policy-oid", "1.3.6.1.4.1.57264.2")
	viper.Set("accepted-policy-oids", []string{"1.3.6.1.4.1.57264.2"})
	viper.Set("max-request-body-size", 1<<20)
	timestamps := timestamp.NewRestAPIServer("127.0.0.1", 0, []string{"http"}, false, time.Minute, time.Minute)
	must(timestamps.Listen())
	fmt.Printf("timestamps 127.0.0.1:%d\n", timestamps.Port)
	log.Fatal(timestamps.Serve())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
