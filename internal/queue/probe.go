package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

// The roles of the binaries' connections, each a user in NATS.
const (
	RoleIngest    = "ingest"
	RoleWorker    = "worker"
	RoleProvision = "provision" // only creates and changes streams and consumers
)

const (
	probeTimeout = 3 * time.Second // of one request
	subjectInfo  = "$JS.API.INFO"
)

// Errors of a Probe's connection and requests, besides ErrNotPermitted.
var (
	ErrCredentials  = errors.New("credentials rejected")
	ErrTLS          = errors.New("TLS handshake failed")
	ErrMissing      = errors.New("does not exist")
	ErrJetStreamOff = errors.New("JetStream is disabled")
)

// Probe is one connection for a self-check, without reconnects. It reads the server's version, its user's
// permissions, the streams and the consumers, and changes nothing.
type Probe struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	role   string
	denied []string // subjects that the user may not use, as found by MissingPermissions
}

// OpenProbe connects as a role. The error may wrap ErrCredentials or ErrTLS.
func OpenProbe(c Config, role string) (*Probe, error) {
	options := []nats.Option{
		nats.Name("purchase-relay doctor"), nats.CustomInboxPrefix("_INBOX_" + role),
		nats.Timeout(probeTimeout), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // without one nats.go prints
	}
	nc, err := nats.Connect(c.NATSURL.Reveal(), append(options, c.credentials()...)...)
	switch {
	case isAuthError(err):
		return nil, ErrCredentials
	case isTLSError(err):
		return nil, fmt.Errorf("%w: %w", ErrTLS, err)
	case err != nil:
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &Probe{nc: nc, js: js, role: role}, nil
}

// Close ends the connection.
func (p *Probe) Close() { p.nc.Close() }

// Version returns the server's version.
func (p *Probe) Version() string { return p.nc.ConnectedServerVersion() }

// Server returns the server's address and reports whether the connection is encrypted.
func (p *Probe) Server() (server string, encrypted bool) {
	server = p.nc.ConnectedUrl()
	return server, p.nc.TLSRequired() || strings.HasPrefix(server, "tls:")
}

// MissingPermissions tries every subject that the role uses and lists those that its user may not use. The
// product works without the optional ones. Later requests on a listed subject return ErrNotPermitted.
func (p *Probe) MissingPermissions() (required, optional []string, err error) {
	// The server responds in order: a permission error arrives before the pong of the flush.
	try := func(subject string, use func() error) error {
		if err := use(); err != nil {
			return err
		}
		if err := p.nc.FlushTimeout(probeTimeout); err != nil {
			return err
		}
		if err := p.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) &&
			strings.Contains(err.Error(), strconv.Quote(subject)) {
			p.denied = append(p.denied, subject)
		}
		return nil
	}
	for _, subject := range publishes(p.role) {
		msg := nats.NewMsg(subject)
		msg.Data = []byte("?")                         // neither a valid request nor an acknowledgement
		msg.Header.Set("Nats-Expected-Stream", "none") // so that no stream stores it
		if err := try(subject, func() error { return p.nc.PublishMsg(msg) }); err != nil {
			return nil, nil, err
		}
	}
	for _, subject := range subscribes(p.role) {
		subscribe := func() error { _, err := p.nc.SubscribeSync(subject); return err }
		if err := try(subject, subscribe); err != nil {
			return nil, nil, err
		}
	}
	for _, subject := range p.denied {
		switch {
		case strings.HasPrefix(subject, advisoryNak), subject == subjectInfo, subject == message.SubjectStats,
			strings.HasPrefix(subject, message.SubjectLeases),
			subject == "$JS.API.STREAM.INFO."+message.StreamLeases:
			optional = append(optional, subject)
		default:
			required = append(required, subject)
		}
	}
	return required, optional, nil
}

// publishes returns the subjects that a role publishes on. A name that ends with doctor belongs to no
// purchase.
func publishes(role string) []string {
	if role == RoleWorker {
		return []string{
			message.SubjectOutcomes, message.SubjectDead + "doctor",
			message.SubjectStats, message.SubjectLeases + message.LeaseStats,
			"$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker",
			"$JS.ACK.PURCHASES.worker.doctor",
		}
	}
	list := []string{
		message.SubjectLive + "doctor", message.SubjectTest + "doctor",
		"$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.OUTCOMES.recorder.doctor", subjectInfo,
	}
	streams := []string{
		message.StreamPurchases, message.StreamPurchasesDead, message.StreamOutcomes, message.StreamLeases,
	}
	for _, stream := range streams {
		list = append(list, "$JS.API.STREAM.INFO."+stream)
	}
	return append(list, "$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.INFO.OUTCOMES.recorder")
}

// subscribes returns the subjects that a role subscribes to.
func subscribes(role string) []string {
	if role == RoleWorker {
		return []string{"_INBOX_worker.doctor.*", advisoryNak + "PURCHASES.worker"}
	}
	return []string{"_INBOX_ingest.doctor.*", message.SubjectWorkers + "*"}
}

// StreamState is the state of one stream.
type StreamState struct {
	Name            string
	Err             error // ErrMissing, ErrJetStreamOff, ErrNotPermitted or another; then the rest is unset
	Wanted          int64 // bytes that the product reserves for it
	Messages, Bytes uint64
	MaxBytes        int64
	Differs         []string // settings that differ from the product's
}

// Streams reads the state of each of the product's streams.
func (p *Probe) Streams(ctx context.Context, s StreamConfig) (list []StreamState) {
	for _, want := range streams(s) {
		state := StreamState{Name: want.Name, Wanted: want.MaxBytes}
		state.Err = p.do(ctx, "$JS.API.STREAM.INFO."+want.Name, func(ctx context.Context) error {
			stream, err := p.js.Stream(ctx, want.Name)
			if err == nil {
				info := stream.CachedInfo()
				state.Messages, state.Bytes, state.MaxBytes = info.State.Msgs, info.State.Bytes, info.Config.MaxBytes
				state.Differs = streamDifferences(info.Config, want)
			}
			return err
		})
		list = append(list, state)
	}
	return list
}

// ConsumerState is the state of one consumer.
type ConsumerState struct {
	Name           string
	Err            error // as in StreamState
	Waiting        uint64
	Unacknowledged int           // in flight or delayed
	Differs        bool          // settings differ from the product's
	ClockAhead     time.Duration // of the server, compared with this machine
	ClockKnown     bool
}

// Consumers reads the state of the role's consumers; a worker has one.
func (p *Probe) Consumers(ctx context.Context) (list []ConsumerState) {
	for _, d := range durables() {
		stream, durable := d[0], d[1]
		if p.role == RoleWorker && durable != message.ConsumerWorker {
			continue
		}
		state := ConsumerState{Name: durable}
		state.Err = p.do(ctx, "$JS.API.CONSUMER.INFO."+stream+"."+durable, func(ctx context.Context) error {
			before := time.Now()
			bound, err := p.js.Consumer(ctx, stream, durable)
			if err == nil {
				info := bound.CachedInfo()
				state.Waiting, state.Unacknowledged = info.NumPending, info.NumAckPending
				state.Differs = !consumerMatches(info.Config)
				state.ClockAhead, state.ClockKnown = offsetBetween(before, time.Now(), info.TimeStamp)
			}
			return err
		})
		list = append(list, state)
	}
	return list
}

// Storage is an account's storage, in bytes.
type Storage struct {
	Limit          int64 // 0 or less: none
	Used, Reserved uint64
}

// Storage reads the account's storage.
func (p *Probe) Storage(ctx context.Context) (s Storage, err error) {
	err = p.do(ctx, subjectInfo, func(ctx context.Context) error {
		info, err := p.js.AccountInfo(ctx)
		if err == nil {
			s = Storage{info.Limits.MaxStore, info.Store, info.ReservedStore}
		}
		return err
	})
	return s, err
}

// do runs a request unless its subject is known to be denied: the server would not respond.
func (p *Probe) do(ctx context.Context, subject string, request func(ctx context.Context) error) error {
	if slices.Contains(p.denied, subject) {
		return ErrNotPermitted
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := request(ctx)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound):
		return ErrMissing
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return ErrJetStreamOff
	}
	return err
}
