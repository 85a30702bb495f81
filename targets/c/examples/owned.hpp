// Handles that free themselves, and errors that are thrown. For the examples of C++.
#pragma once

#include <lacuna.h>
#include <memory>
#include <stdexcept>
#include <string>

inline void check(lacuna_status status)
{
    if (status != LACUNA_STATUS_OK)
        throw std::runtime_error(std::string(lacuna_status_name(status)) + ": " + lacuna_last_error());
}

template <typename H, lacuna_status (*Free)(H *)>
struct Freeing {
    void operator()(H *handle) const { Free(handle); }
};

template <typename H, lacuna_status (*Free)(H *)>
using Owned = std::unique_ptr<H, Freeing<H, Free>>;

using Model = Owned<lacuna_model, lacuna_model_free>;
using Session = Owned<lacuna_session, lacuna_session_free>;
using Decoder = Owned<lacuna_decoder, lacuna_decoder_free>;
using Sampler = Owned<lacuna_sampler, lacuna_sampler_free>;
using Tokenizer = Owned<lacuna_tokenizer, lacuna_tokenizer_free>;
using Text = Owned<lacuna_text, lacuna_text_free>;

// make<Session>(lacuna_session_new, model.get(), &options)
template <typename O, typename F, typename... A>
O make(F function, A... arguments)
{
    typename O::pointer handle = nullptr;
    check(function(arguments..., &handle));
    return O(handle);
}
