package rpc

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/json"
	"fmt"
)

// MaxSecrets is how many bytes the JSON of [Secrets] may have.
const MaxSecrets = 16 << 20

// sealPart is how much of a sealed message one frame carries.
const sealPart = MaxInputFrame / 2

// SealKey is what a worker opens the messages with that were sealed for it
// (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, base
// mode). It lives as long as the worker, in its memory.
type SealKey struct{ key hpke.PrivateKey }

// NewSealKey makes a key.
func NewSealKey() (*SealKey, error) {
	key, err := sealKEM().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("rpc: %w", err)
	}
	return &SealKey{key}, nil
}

// Public returns the key that messages are sealed with, 32 bytes.
func (k *SealKey) Public() []byte { return k.key.PublicKey().Bytes() }

// SealSecrets seals a message for the worker of a session that has this public
// key, and cuts it into parts that fit a frame each.
//
// Who records the parts, and the worker's answers, learns nothing but their
// length. Who is in between and answers the handshake himself, as the sandbox's
// daemon could, learns all: the worker cannot prove who it is.
func SealSecrets(public []byte, session string, m *Secrets) ([]Sealed, error) {
	key, err := sealKEM().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("rpc: %w: the worker's key: %v", ErrMessage, err)
	}
	plain, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("rpc: %w: the secrets cannot be written as JSON", ErrMessage)
	}
	if len(plain) > MaxSecrets {
		return nil, fmt.Errorf("rpc: %w: the secrets have %d bytes, limit is %d", ErrMessage, len(plain), MaxSecrets)
	}
	data, err := hpke.Seal(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), sealInfo(session), plain)
	if err != nil {
		return nil, fmt.Errorf("rpc: seal: %w", err)
	}
	var parts []Sealed
	for len(data) > 0 {
		n := min(len(data), sealPart)
		parts = append(parts, Sealed{Part: len(parts), More: n < len(data), Data: data[:n]})
		data = data[n:]
	}
	return parts, nil
}

// Open opens what [SealSecrets] has sealed, its parts one behind the other. The
// error matches [ErrMessage].
func (k *SealKey) Open(session string, data []byte) (*Secrets, error) {
	plain, err := hpke.Open(k.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), sealInfo(session), data)
	if err != nil {
		return nil, fmt.Errorf("rpc: %w: the secrets were not sealed for this worker, or are damaged", ErrMessage)
	}
	var m Secrets
	if json.Unmarshal(plain, &m) != nil { // its error would tell of the text
		return nil, fmt.Errorf("rpc: %w: the secrets are no object of the expected form", ErrMessage)
	}
	return &m, nil
}

func sealKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// sealInfo binds a message to its purpose and its session.
func sealInfo(session string) []byte {
	return []byte("osiris-pipelines/remote secrets 1\x00" + session)
}

// MaxSealed is how many bytes the parts of a sealed message may have together.
const MaxSealed = MaxSecrets + 32 + 16 // encapsulated key, authentication tag
