// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"errors"
	"io"
	"sync"
)

// Token is an open token, as Serve needs it; safe for concurrent use. Its errors are of type *Error, or of kind Failed.
type Token interface {
	// Sessions is how many requests it serves at once.
	Sessions() int
	// List returns the labels of keys that begin so, also of those that are there by half.
	List(prefix string) ([]string, error)
	// Generate makes a key ("ec-p256", "rsa-2048" …) that can not leave the token, and returns its public key (PKIX).
	Generate(label, keyType string) (public []byte, err error)
	Find(label string) (public []byte, err error)
	// Sign returns what CKM_ECDSA (data is a digest) or CKM_RSA_PKCS (a DigestInfo) makes.
	Sign(label string, data []byte) ([]byte, error)
	// Delete deletes all objects of that label; none is no error.
	Delete(label string) error
	Close() error
}

// Serve answers the server until it goes, which is no error.
func Serve(conn io.ReadWriter, open func(Open) (Token, error)) (err error) {
	var write sync.Mutex
	var working sync.WaitGroup
	var token Token
	defer func() {
		working.Wait()
		if token != nil {
			err = errors.Join(err, token.Close())
		}
	}()
	reply := func(a Response) error {
		write.Lock()
		defer write.Unlock()
		return writeFrame(conn, a)
	}
	for {
		var q Request
		if err := readFrame(conn, &q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := q.check(); err != nil {
			return err
		}
		if q.Op == OpOpen {
			a := Response{ID: q.ID}
			if token != nil {
				a.Error = failed("the token is open already")
			} else if token, err = openToken(*q.Open, open); err != nil {
				a.Error = asError(err)
			} else {
				a.Sessions = token.Sessions()
			}
			if err := reply(a); err != nil {
				return err
			}
			continue
		}
		if token == nil {
			return errFrame
		}
		working.Go(func() { _ = reply(answer(token, q)) }) // a server that is gone ends the loop
	}
}

func openToken(o Open, open func(Open) (Token, error)) (Token, error) {
	if o.Version != Version {
		return nil, failed("assay-pkcs11 and assay-server are of different versions (messages %d and %d): install the two that belong together", Version, o.Version)
	}
	return open(o)
}

func answer(token Token, q Request) Response {
	a := Response{ID: q.ID}
	var err error
	switch q.Op {
	case OpList:
		a.Labels, err = token.List(q.Label)
	case OpGenerate:
		a.PublicKey, err = token.Generate(q.Label, q.Type)
	case OpFind:
		a.PublicKey, err = token.Find(q.Label)
	case OpSign:
		a.Signature, err = token.Sign(q.Label, q.Data)
	case OpDelete:
		err = token.Delete(q.Label)
	}
	if err != nil {
		return Response{ID: q.ID, Error: asError(err)}
	}
	return a
}

func asError(err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		return failed("%v", err)
	}
	return &Error{e.Kind, err.Error()}
}
