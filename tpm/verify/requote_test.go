// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestRequote(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	spki := n.spki(n.hello.KeyPublic)
	ak, err := ParseAK(n.hello.AKPublic)
	n.ok(err)
	question := tpm.Question{Version: tpm.Version, Nonce: bytes.Repeat([]byte{1}, tpm.NonceSize), PCRs: DefaultPCRs}
	history := tpm.History{Count: 3, Head: [32]byte{4}}
	good, err := n.device.Requote(n.key, question, binding, history)
	n.ok(err)
	first, err := ak.Requote(question, good, spki, binding)
	n.ok(err)
	if len(first.PCRs) != len(DefaultPCRs) || first.ResetCount == 0 {
		t.Errorf("%+v", first)
	}
	again, err := n.device.Requote(n.key, question, binding, history)
	n.ok(err)
	second, err := ak.Requote(question, again, spki, binding)
	n.ok(err)
	if second.Before(&first) || !second.SameBoot(&first) {
		t.Errorf("%+v, then %+v", first, second)
	}

	other := newNode(t, swtpmtest.Other(t))
	foreign, err := other.device.Requote(other.key, question, binding, history)
	n.ok(err)
	for what, c := range map[string]struct {
		question tpm.Question
		answer   tpm.Answer
		spki     []byte
		binding  []byte
		check    string
	}{
		"a replayed answer":           {tpm.Question{Nonce: bytes.Repeat([]byte{2}, tpm.NonceSize), PCRs: DefaultPCRs}, good, spki, binding, checkQuote},
		"another connection":          {question, good, spki, bytes.Repeat([]byte{9}, tpm.BindingSize), checkQuote},
		"no connection":               {question, good, spki, nil, checkConnection},
		"another agent's key":         {question, good, other.spki(other.hello.KeyPublic), binding, checkQuote},
		"another TPM":                 {question, foreign, spki, binding, checkQuote},
		"fewer PCRs":                  {tpm.Question{Nonce: question.Nonce, PCRs: []int{0, 1}}, good, spki, binding, checkSelection},
		"another history":             {question, tpm.Answer{Quoted: good.Quoted, History: tpm.History{Count: 4, Head: history.Head}}, spki, binding, checkQuote},
		"other PCR values":            {question, tpm.Answer{Quoted: changed(good.Quoted), History: history}, spki, binding, checkPCRs},
		"the quote of an attestation": {question, n.fromAttestation(history), spki, binding, checkQuote},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := ak.Requote(c.question, c.answer, c.spki, c.binding)
			refused(t, err, c.check, "")
		})
	}
}

func changed(q tpm.Quoted) tpm.Quoted {
	values := map[int][]byte{}
	for n, v := range q.PCRValues {
		values[n] = v
	}
	values[0] = bytes.Repeat([]byte{1}, 32)
	q.PCRValues = values
	return q
}

// fromAttestation is an answer with the quote of an attestation.
func (n *node) fromAttestation(h tpm.History) tpm.Answer {
	_, c := n.begin(n.hello)
	return tpm.Answer{Quoted: n.answer(c).Quoted, History: h}
}

// TestManInTheMiddle relays an attestation between two TLS connections, all of it as it is: the
// attacker has a certificate that the agent accepts, and the agent an honest TPM.
func TestManInTheMiddle(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	agent, toAgent := connect(t)
	toServer, server := connect(t)
	go relay(toAgent, toServer)
	go relay(toServer, toAgent)

	go func() {
		hello := json.NewEncoder(agent)
		_ = hello.Encode(n.hello)
		var c tpm.Challenge
		if json.NewDecoder(agent).Decode(&c) == nil {
			if e, err := n.device.Answer(n.key, c, exporter(t, agent)); err == nil {
				_ = hello.Encode(e)
			}
		}
	}()
	in := json.NewDecoder(server)
	var h tpm.Hello
	n.ok(in.Decode(&h))
	s, c := n.begin(h)
	n.ok(json.NewEncoder(server).Encode(c))
	var e tpm.Evidence
	n.ok(in.Decode(&e))
	p := proof(e, n.key.Public())
	p.Binding = exporter(t, server)
	_, err := again(s).Finish(p, now)
	refused(t, err, checkCertify, "nobody may stand between agent and server")
	// It is the connection alone that gives the man in the middle away.
	p.Binding = exporter(t, agent)
	if _, err := again(s).Finish(p, now); err != nil {
		t.Errorf("with the agent's own connection: %v", err)
	}
	p.Binding = nil
	_, err = again(s).Finish(p, now)
	refused(t, err, checkConnection, "TLS 1.3")
}

func relay(to, from *tls.Conn) {
	buffer := make([]byte, 1<<16)
	for {
		k, err := from.Read(buffer)
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:k]); err != nil {
			return
		}
	}
}

func exporter(t *testing.T, c *tls.Conn) []byte {
	t.Helper()
	state := c.ConnectionState()
	b, err := state.ExportKeyingMaterial(tpm.BindingLabel, nil, tpm.BindingSize)
	if err != nil {
		t.Error(err)
	}
	return b
}

// connect returns both ends of a TLS connection over a real socket.
func connect(t *testing.T) (client, server *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		} else if err := c.(*tls.Conn).Handshake(); err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	client, err = tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	server = (<-accepted).(*tls.Conn)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}
