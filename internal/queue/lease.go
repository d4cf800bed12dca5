package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

// The server's rejections of another expected sequence; the second one is a cluster's.
const (
	errWrongSequence        jetstream.ErrorCode = 10071
	errWrongSequenceCluster jetstream.ErrorCode = 10164
)

// Lease elects one of the workers. The stream LEASES keeps one message per subject, for LeaseTTL: the first
// worker to publish it holds the lease, and renews it by replacing its own message. The server rejects every
// other publish. After the holder crashed or lost its connection, another worker holds the lease within
// LeaseTTL. A paused holder may believe in its lease for longer: what it protects must be harmless twice.
// It is safe for concurrent use.
type Lease struct {
	conn    *Conn
	subject string
	holder  string

	mu       sync.Mutex
	sequence uint64 // of the message; 0: not the holder
}

// Lease returns the lease on leases.<name> for a holder, which is not its holder yet.
func (c *Conn) Lease(name, holder string) *Lease {
	return &Lease{conn: c, subject: message.SubjectLeases + name, holder: holder}
}

// Hold takes or renews the lease and reports whether this process holds it. Call it several times per
// LeaseTTL. With an error it is unknown and must count as not held.
func (l *Lease) Hold(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.conn.Connected() {
		l.sequence = 0
		return false, fmt.Errorf("take lease %s: %w", l.subject, errDisconnected)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg := nats.NewMsg(l.subject)
	msg.Data = []byte(l.holder)
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(l.sequence, 10))
	var ack *jetstream.PubAck
	err := l.conn.requestOn(ctx, []string{l.subject}, func(ctx context.Context) (err error) {
		ack, err = l.conn.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
		return err
	})
	if err != nil {
		l.sequence = 0
		if api, ok := errors.AsType[*jetstream.APIError](err); ok &&
			(api.ErrorCode == errWrongSequence || api.ErrorCode == errWrongSequenceCluster) {
			return false, nil
		}
		return false, fmt.Errorf("take lease %s: %w", l.subject, err)
	}
	l.sequence = ack.Sequence
	return true, nil
}
