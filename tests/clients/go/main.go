// A member of a consumer group by franz-go: `member ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]`.
// What it prints, and what is asked of it, is said in harness/members.py.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const commitInterval = 200 * time.Millisecond

var (
	out      = bufio.NewWriter(os.Stdout)
	outMutex sync.Mutex
)

func say(format string, values ...any) {
	outMutex.Lock()
	defer outMutex.Unlock()
	fmt.Fprintf(out, "%d ", time.Now().UnixMicro())
	fmt.Fprintf(out, format+"\n", values...)
	out.Flush()
}

func sayPartitions(event string, topics map[string][]int32) {
	var names []string
	for _, partitions := range topics {
		for _, partition := range partitions {
			names = append(names, strconv.Itoa(int(partition)))
		}
	}
	say("%s %s", event, strings.Join(names, ","))
}

// member holds the positions that were processed and not committed yet. Callbacks run beside the polling loop.
type member struct {
	mutex       sync.Mutex
	topic       string
	uncommitted map[int32]kgo.EpochOffset
}

// commit tries once: what fails is tried again with the next call, or by who owns the partition then.
func (m *member) commit(ctx context.Context, client *kgo.Client) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if len(m.uncommitted) == 0 {
		return
	}
	var refused error
	client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{m.topic: m.uncommitted},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, err error) {
			refused = err
			if err != nil {
				return
			}
			for _, topic := range answer.Topics {
				for _, partition := range topic.Partitions {
					if code := kerr.ErrorForCode(partition.ErrorCode); code != nil {
						refused = code
					}
				}
			}
		})
	if refused != nil {
		say("refused %v", refused)
		return
	}
	for partition, at := range m.uncommitted {
		say("committed %d %d", partition, at.Offset)
	}
	clear(m.uncommitted)
}

func (m *member) gone(event string, topics map[string][]int32) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	for _, partition := range topics[m.topic] {
		delete(m.uncommitted, partition)
	}
	sayPartitions(event, topics)
}

func (m *member) options(arguments []string) ([]kgo.Opt, context.Context) {
	ctx := context.Background()
	options := []kgo.Opt{
		kgo.SeedBrokers(arguments[0]),
		kgo.ConsumerGroup(arguments[1]),
		kgo.ConsumeTopics(m.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		// A partition is not taken away between a poll and the marks of its records.
		kgo.BlockRebalanceOnPoll(),
		kgo.MetadataMaxAge(5 * time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			sayPartitions("assigned", topics)
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, client *kgo.Client, topics map[string][]int32) {
			m.commit(ctx, client)
			m.gone("revoked", topics)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			m.gone("lost", topics)
		}),
	}
	if len(arguments) > 5 {
		options = append(options, kgo.InstanceID(arguments[5]))
	}
	if arguments[3] == "consumer" {
		//lint:ignore SA1029 the key that the library looks for
		return options, context.WithValue(ctx, "opt_in_kafka_next_gen_balancer_beta", true)
	}
	balancer := map[string]kgo.GroupBalancer{
		"range":              kgo.RangeBalancer(),
		"roundrobin":         kgo.RoundRobinBalancer(),
		"cooperative-sticky": kgo.CooperativeStickyBalancer(),
	}[arguments[3]]
	session, err := strconv.Atoi(arguments[4])
	if balancer == nil || err != nil {
		fmt.Fprintln(os.Stderr, "no such protocol, or no session timeout:", arguments[3:5])
		os.Exit(2)
	}
	return append(options, kgo.Balancers(balancer),
		kgo.SessionTimeout(time.Duration(session)*time.Millisecond),
		kgo.HeartbeatInterval(500*time.Millisecond)), ctx
}

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "usage: member ADDRESS GROUP TOPIC PROTOCOL SESSION_MS [INSTANCE_ID]")
		os.Exit(2)
	}
	m := &member{topic: os.Args[3], uncommitted: map[int32]kgo.EpochOffset{}}
	options, base := m.options(os.Args[1:])
	options = append(options, kgo.WithContext(base))
	leaving, stop := signal.NotifyContext(base, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client, err := kgo.NewClient(options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	committedAt := time.Now()
	for leaving.Err() == nil {
		polling, done := context.WithTimeout(leaving, 100*time.Millisecond)
		fetches := client.PollFetches(polling)
		done()
		fetches.EachError(func(_ string, _ int32, err error) {
			if polling.Err() == nil {
				say("error %v", err)
			}
		})
		fetches.EachRecord(func(record *kgo.Record) {
			say("record %d %d", record.Partition, record.Offset)
			m.mutex.Lock()
			m.uncommitted[record.Partition] = kgo.EpochOffset{Epoch: record.LeaderEpoch, Offset: record.Offset + 1}
			m.mutex.Unlock()
		})
		if time.Since(committedAt) >= commitInterval {
			m.commit(base, client)
			committedAt = time.Now()
		}
		client.AllowRebalance()
	}
	// Leaving revokes, and that commits.
	client.CloseAllowingRebalance()
	say("left")
}
